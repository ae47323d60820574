//! Values go in and come out.

use sandbox_mode::{In, InOut, Out, Val};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::suite::{Suite, cases};
use crate::verdict::Outcome;

cases! {
    returns_nothing,
    returns_integers,
    returns_a_struct,
    returns_the_largest_result,
    takes_values,
    takes_the_largest_value,
    takes_an_input,
    fills_an_output,
    changes_an_in_out,
    takes_eight_arguments,
    takes_slices,
    takes_a_string,
    takes_empty_slices,
    takes_structs,
    calls_a_closure,
    calls_different_functions_in_turn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Picture {
    pixels: u64,
    width: u32,
    height: u16,
    colours: [u8; 2],
}

const PICTURE: Picture = Picture { pixels: u64::MAX / 3, width: 640, height: 480, colours: [3, 8] };

fn returns_nothing(suite: &Suite) -> Outcome {
    suite.sandbox()?.call(|| (), ())?;
    Ok(())
}

fn returns_integers(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    expect_eq!(sandbox.call(|| 0xa5u8, ())?, 0xa5);
    expect_eq!(sandbox.call(|| -5i16, ())?, -5);
    expect_eq!(sandbox.call(|| 0xdead_beefu32, ())?, 0xdead_beef);
    expect_eq!(sandbox.call(|| u64::MAX - 1, ())?, u64::MAX - 1);
    expect_eq!(sandbox.call(|| i128::MIN + 1, ())?, i128::MIN + 1);
    Ok(())
}

fn returns_a_struct(suite: &Suite) -> Outcome {
    expect_eq!(suite.sandbox()?.call(|| PICTURE, ())?, PICTURE);
    Ok(())
}

fn returns_the_largest_result(suite: &Suite) -> Outcome {
    const LEN: usize = sandbox_mode::MAX_RESULT / size_of::<u64>();
    let numbers = |start: u64| core::array::from_fn::<u64, LEN, _>(|index| start.wrapping_mul(index as u64 + 1));
    let found = suite.sandbox()?.call(
        |start: u64| core::array::from_fn::<u64, LEN, _>(|index| start.wrapping_mul(index as u64 + 1)),
        (Val(0x1234_5678_9abc_def1u64),),
    )?;
    expect!(found == numbers(0x1234_5678_9abc_def1));
    Ok(())
}

fn takes_values(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let sum = sandbox.call(
        |a: u8, b: u16, c: i32, d: u64| (u64::from(a) + u64::from(b) + d).wrapping_add_signed(c.into()),
        (Val(200u8), Val(60_000u16), Val(-1i32), Val(1u64 << 63)),
    )?;
    expect_eq!(sum, (1 << 63) + 60_199);
    Ok(())
}

fn takes_the_largest_value(suite: &Suite) -> Outcome {
    let value: [u8; sandbox_mode::MAX_VALUE] = core::array::from_fn(|index| index as u8 ^ 0x3c);
    expect!(suite.sandbox()?.call(|value: [u8; sandbox_mode::MAX_VALUE]| value, (Val(value),))? == value);
    Ok(())
}

fn takes_an_input(suite: &Suite) -> Outcome {
    let number = 0x0102_0304_0506_0708u64;
    expect_eq!(suite.sandbox()?.call(|number: &u64| number.swap_bytes(), (In(&number),))?, 0x0807_0605_0403_0201);
    Ok(())
}

fn fills_an_output(suite: &Suite) -> Outcome {
    let mut number = 7u32;
    suite.sandbox()?.call(|number: &mut u32| *number += 35, (Out(&mut number),))?;
    expect_eq!(number, 35, "an output begins as zero");
    Ok(())
}

fn changes_an_in_out(suite: &Suite) -> Outcome {
    let mut number = 7u32;
    suite.sandbox()?.call(|number: &mut u32| *number += 35, (InOut(&mut number),))?;
    expect_eq!(number, 42);
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn eight(a: u8, b: &u16, c: &mut u32, d: &mut u64, e: &str, f: &[u16], g: &mut [u8], h: Picture) -> u64 {
    *c = u32::from(a) + u32::from(*b);
    *d += 1;
    g.fill(e.len() as u8);
    f.iter().map(|&number| u64::from(number)).sum::<u64>() + u64::from(h.width)
}

fn takes_eight_arguments(suite: &Suite) -> Outcome {
    let (mut c, mut d, mut g) = (0, u64::MAX - 1, [0; 9]);
    let arguments = (
        Val(1u8),
        In(&2u16),
        Out(&mut c),
        InOut(&mut d),
        In("twelve bytes"),
        In(&[10u16, 20, 30][..]),
        Out(&mut g[..]),
        Val(PICTURE),
    );
    expect_eq!(suite.sandbox()?.call(eight, arguments)?, 700);
    expect_eq!((c, d, g), (3, u64::MAX, [12; 9]));
    Ok(())
}

fn takes_slices(suite: &Suite) -> Outcome {
    let words: [u16; 5] = [1, 2, 3, 4, 0xffff];
    let mut squares = [0u32; 5];
    let square = |words: &[u16], squares: &mut [u32]| {
        for (word, square) in words.iter().zip(squares.iter_mut()) {
            *square = u32::from(*word) * u32::from(*word);
        }
        (words.len() * 100 + squares.len()) as u64
    };
    expect_eq!(suite.sandbox()?.call(square, (In(&words[..]), Out(&mut squares[..])))?, 505);
    expect_eq!(squares, words.map(|word| u32::from(word) * u32::from(word)));
    Ok(())
}

fn takes_a_string(suite: &Suite) -> Outcome {
    let letters = |text: &str| text.chars().filter(|letter| letter.is_alphabetic()).count() as u64;
    expect_eq!(suite.sandbox()?.call(letters, (In("ein Prüfstück: 検査"),))?, 14);
    Ok(())
}

fn takes_empty_slices(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    let lengths = |a: &[u64], b: &mut [u8], c: &str| (a.len() + b.len() + c.len()) as u64;
    expect_eq!(sandbox.call(lengths, (In(&[][..]), Out(&mut [][..]), In("")))?, 0);
    expect_eq!(sandbox.call(lengths, (In(&[1, 2][..]), InOut(&mut [5; 3][..]), In("four")))?, 9);
    expect_eq!(sandbox.call(lengths, (In(&[][..]), Out(&mut [][..]), In("")))?, 0, "after a call with data");
    Ok(())
}

fn takes_structs(suite: &Suite) -> Outcome {
    let mut copies = [Picture { pixels: 0, width: 0, height: 0, colours: [0; 2] }; 3];
    suite.sandbox()?.call(
        |picture: &Picture, copies: &mut [Picture]| copies.fill(*picture),
        (In(&PICTURE), Out(&mut copies[..])),
    )?;
    expect_eq!(copies, [PICTURE; 3]);
    Ok(())
}

fn calls_a_closure(suite: &Suite) -> Outcome {
    expect_eq!(suite.sandbox()?.call(|a: u64, b: u64| a / b, (Val(91u64), Val(7u64)))?, 13);
    Ok(())
}

fn calls_different_functions_in_turn(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    for round in 0..50u64 {
        expect_eq!(sandbox.call(|n: u64| n * 3, (Val(round),))?, round * 3);
        let mut text = [0u8; 20];
        sandbox.call(|n: &u64, text: &mut [u8]| text.fill(*n as u8), (In(&round), Out(&mut text[..])))?;
        expect_eq!(text, [round as u8; 20]);
        expect_eq!(sandbox.call(|a: &[u64]| a[0] + a[1], (In(&[round, 1][..]),))?, round + 1);
    }
    Ok(())
}
