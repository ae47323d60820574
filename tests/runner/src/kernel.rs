//! A kernel image: its symbols, its code, and where in physical memory it is.

use std::collections::BTreeMap;
use std::path::Path;

use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSymbol, SymbolKind};

use crate::error::Error;
use crate::image;
use crate::machine::Machine;

/// A part of the image that is loaded.
#[derive(Debug)]
struct Segment {
    address: u64,
    physical: u64,
    /// Variables without an initial value have no bytes.
    size: u64,
    bytes: Vec<u8>,
}

/// A kernel image.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) machine: Machine,
    symbols: BTreeMap<String, u64>,
    /// One name for each address.
    places: BTreeMap<u64, String>,
    segments: Vec<Segment>,
}

impl Kernel {
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let machine = image::machine_of(path)?;
        let unreadable =
            |error: &dyn std::fmt::Display| Error::new(format!("cannot read the image {}: {error}", path.display()));
        let bytes = std::fs::read(path).map_err(|error| unreadable(&error))?;
        Self::parse(machine, &bytes).map_err(|error| unreadable(&error))
    }

    fn parse(machine: Machine, bytes: &[u8]) -> Result<Self, object::Error> {
        let file = object::File::parse(bytes)?;
        let mut symbols = BTreeMap::new();
        let mut places = BTreeMap::new();
        for symbol in file.symbols() {
            // `$x` and `$d` mark what is code and what is data in AArch64's files.
            let name = symbol.name()?;
            let is_place = !matches!(symbol.kind(), SymbolKind::Section | SymbolKind::File);
            if !is_place || symbol.section_index().is_none() || name.is_empty() || name.starts_with('$') {
                continue;
            }
            symbols.insert(name.to_owned(), symbol.address());
            let readable = format!("{:#}", rustc_demangle::demangle(name));
            let place = places.entry(symbol.address()).or_insert_with(|| readable.clone());
            // Better the name of a part than that of the border of something larger at the same address.
            if place.ends_with("_start") || place.ends_with("_end") {
                *place = readable;
            }
        }
        let header = FileHeader64::<Endianness>::parse(bytes)?;
        let endian = header.endian()?;
        let mut segments = Vec::new();
        for part in header.program_headers(endian, bytes)?.iter().filter(|part| part.p_type(endian) == PT_LOAD) {
            segments.push(Segment {
                address: part.p_vaddr(endian),
                physical: part.p_paddr(endian),
                size: part.p_memsz(endian),
                bytes: part.data(endian, bytes).unwrap_or_default().to_vec(),
            });
        }
        Ok(Self { machine, symbols, places, segments })
    }

    /// The address of the symbol `name`.
    pub(crate) fn symbol(&self, name: &str) -> Result<u64, Error> {
        self.symbols.get(name).copied().ok_or_else(|| Error::new(format!("the image has no symbol {name}")))
    }

    /// Where the symbol after `name` stands.
    pub(crate) fn end_of(&self, name: &str) -> Result<u64, Error> {
        let start = self.symbol(name)?;
        let next = self.places.range(start + 1..).next();
        next.map(|(address, _)| *address).ok_or_else(|| Error::new(format!("the image ends with {name}")))
    }

    /// `address` as a person would look it up.
    pub(crate) fn place(&self, address: u64) -> String {
        match self.places.range(..=address).next_back() {
            Some((start, name)) if *start == address => name.clone(),
            Some((start, name)) => format!("{name}+{:#x}", address - start),
            None => format!("{address:#x}"),
        }
    }

    /// The function, or whatever has a name, that `address` is in.
    pub(crate) fn function(&self, address: u64) -> &str {
        self.places.range(..=address).next_back().map_or("?", |(_, name)| name)
    }

    fn segment(&self, address: u64) -> Option<&Segment> {
        self.segments.iter().find(|part| address.checked_sub(part.address).is_some_and(|offset| offset < part.size))
    }

    /// The bytes of the image from `start` to `end`.
    pub(crate) fn bytes(&self, start: u64, end: u64) -> Result<&[u8], Error> {
        let bytes = self.segment(start).and_then(|part| {
            let offset = (start - part.address) as usize;
            part.bytes.get(offset..offset + end.checked_sub(start)? as usize)
        });
        bytes.ok_or_else(|| Error::new(format!("the image has nothing from {start:#x} to {end:#x}")))
    }

    /// Where the symbol `name` is in physical memory.
    pub(crate) fn physical(&self, name: &str) -> Result<u64, Error> {
        let address = self.symbol(name)?;
        let part =
            self.segment(address).ok_or_else(|| Error::new(format!("the image doesn't load what {name} names")))?;
        Ok(part.physical + (address - part.address))
    }

    /// A kernel without anything but these symbols and this code, for tests.
    #[cfg(test)]
    pub(crate) fn of(machine: Machine, symbols: &[(&str, u64)], address: u64, bytes: &[u8]) -> Self {
        let segment = Segment { address, physical: 0x20_0000, size: bytes.len() as u64, bytes: bytes.to_vec() };
        Self {
            machine,
            symbols: symbols.iter().map(|(name, address)| ((*name).to_owned(), *address)).collect(),
            places: symbols.iter().rev().map(|(name, address)| (*address, (*name).to_owned())).collect(),
            segments: vec![segment],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_places_and_frames() {
        let kernel = Kernel::of(Machine::Q35, &[("first", 0x1000), ("second", 0x1004)], 0x1000, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(kernel.symbol("second"), Ok(0x1004));
        assert!(kernel.symbol("third").is_err_and(|error| error.to_string().contains("third")));
        assert_eq!(kernel.place(0x1004), "second");
        assert_eq!(kernel.place(0x1003), "first+0x3");
        assert_eq!(kernel.place(0x10), "0x10");
        assert_eq!(kernel.end_of("first"), Ok(0x1004));
        assert_eq!(kernel.physical("second"), Ok(0x20_0004));
        assert_eq!(kernel.bytes(0x1002, 0x1004), Ok(&[3, 4][..]));
        assert!(kernel.bytes(0x1002, 0x1010).is_err());
        assert!(kernel.bytes(0x1003, 0x1002).is_err());
    }

    #[test]
    fn rubbish_is_refused() {
        assert!(Kernel::parse(Machine::Q35, b"\x7fELF").is_err());
    }
}
