//! Start-up of CPUs, and how views that exist come by the gates.

use super::audit::audit;
use super::layout::{LAYOUTS, TWO_ROOTS, USUAL};
use super::machine::Machine;
use super::processor::cpu;
use super::rig::Rig;
use crate::error::{Error, Unsupported};
use crate::exit::{FatalReport, Syndrome};
use crate::permissions::Permissions;
use crate::{PageRange, VirtAddr};

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn views_take_over_gates_that_came_later() {
    for &layout in LAYOUTS {
        let rig = Rig::stopped(Machine::new(layout)).unwrap();
        let mut old = rig.sandbox();
        rig.start_cpu(2).unwrap();
        let mut new = rig.sandbox();
        // Entering checks that this CPU's gate is there.
        for sandbox in [&mut old, &mut new] {
            sandbox.call(|| (), ()).unwrap();
        }
        rig.start_cpu(0).unwrap();
        for index in [0, 2] {
            cpu(|cpu| cpu.index = index);
            for sandbox in [&mut old, &mut new] {
                sandbox.call(|| (), ()).unwrap();
            }
        }
        audit(&rig, &[&old, &new]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn a_private_copy_of_the_gates_tables_is_kept_up_to_date() {
    for &layout in LAYOUTS {
        let rig = Rig::new(layout);
        // A grant beside the gates makes the tables there the view's own.
        let beside = layout.gates(300, 1);
        rig.machine.map_range(beside, rig.machine.take(), 0, Permissions::READ_WRITE);
        let mut sandbox = rig.sandbox();
        super::rig::grant(&mut sandbox, beside, Permissions::READ).unwrap();
        sandbox.call(|| (), ()).unwrap();
        rig.start_cpu(1).unwrap();
        sandbox.call(|| (), ()).unwrap();
        assert!(sandbox.view.lookup(rig.hal(), layout.gates(3, 1).start()).is_some());
        audit(&rig, &[&sandbox]);
    }
}

#[test]
fn gates_need_not_be_of_one_size() {
    for &layout in LAYOUTS {
        for counts in [[0, 2, 1], [2, 0, 1], [1, 2, 0]].into_iter().take(if cfg!(miri) { 1 } else { 3 }) {
            let rig = Rig::stopped(Machine::new(layout)).unwrap();
            rig.map_data(0, 8, Permissions::READ_WRITE);
            let mut old = rig.sandbox();
            for (index, count) in counts.into_iter().enumerate() {
                cpu(|cpu| cpu.task_state = layout.data(2 * index as u64, count).pages().collect());
                rig.start_cpu(index).unwrap();
                old.call(|| (), ()).unwrap();
            }
            let mut late = rig.sandbox();
            late.call(|| (), ()).unwrap();
            // Gates of two pages and so many of the host's each, with one page between.
            let mut page = 0;
            for count in counts {
                for sandbox in [&old, &late] {
                    let mapped =
                        |offset| sandbox.view.lookup(rig.hal(), layout.gates(page + offset, 1).start()).is_some();
                    assert!((0..2 + count).all(mapped) && !mapped(2 + count));
                }
                page += 3 + count;
            }
            audit(&rig, &[&old, &late]);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn start_up_is_refused_with_a_reason() {
    let rig = Rig::stopped(Machine::new(USUAL)).unwrap();
    assert_eq!(rig.start_cpu(4), Err(Error::TooManyCpus { cpus: 4, most: 4 }));
    cpu(|cpu| cpu.task_state = [USUAL.data(0, 1).start()].into());
    assert_eq!(rig.start_cpu(0), Err(Error::NotMapped(USUAL.data(0, 1).start())));
    cpu(|cpu| cpu.task_state.clear());
    assert_eq!(rig.hal().cpus.started(), 0);
    let before = rig.machine.outstanding();
    rig.machine.refuse_gates(true);
    assert_eq!(rig.start_cpu(0), Err(Error::GateNotMapped));
    // The directory of CPUs may stay.
    assert!(rig.machine.outstanding() <= before + 1);
    rig.machine.refuse_gates(false);
    cpu(|cpu| cpu.unsupported = Some(Unsupported::Enabled("magic")));
    assert_eq!(rig.start_cpu(0), Err(Error::Unsupported(Unsupported::Enabled("magic"))));
    cpu(|cpu| cpu.unsupported = None);
    assert_eq!(rig.sandbox().call(|| (), ()), Err(Error::CpuNotStarted(0).into()));
    rig.start_cpu(0).unwrap();
    rig.sandbox().call(|| (), ()).unwrap();
    assert_eq!(rig.start_cpu(0), Err(Error::CpuStartedTwice(0)));
    audit(&rig, &[&rig.sandbox()]);
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn a_gate_that_is_not_mapped_as_promised_is_refused() {
    let rig = Rig::stopped(Machine::new(TWO_ROOTS)).unwrap();
    let gate = TWO_ROOTS.gates(0, 2);
    rig.machine.map_range(gate, rig.machine.take_many(2), 0, Permissions::READ_WRITE);
    rig.machine.edit(gate.start(), 1, |raw| raw & !super::layout::WRITE);
    let (host, wanted) = (Permissions::READ, Permissions::READ_WRITE);
    assert_eq!(rig.start_cpu(0), Err(Error::Escalation { page: gate.start(), host, wanted }));
    rig.machine.edit(gate.start(), 1, |raw| raw | super::layout::WRITE);
    rig.start_cpu(0).unwrap();
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn a_gate_that_the_cpu_cannot_bear_is_refused() {
    let rig = Rig::stopped(Machine::new(TWO_ROOTS)).unwrap();
    let mut sandbox = rig.sandbox();
    rig.machine.state().unusual_gates = true;
    assert_eq!(rig.start_cpu(0), Err(Error::GateNotMapped));
    assert_eq!(rig.sandbox().view.lookup(rig.hal(), TWO_ROOTS.gates(0, 1).start()), None);
    rig.machine.state().unusual_gates = false;
    rig.start_cpu(0).unwrap();
    sandbox.call(|| (), ()).unwrap();
    audit(&rig, &[&sandbox]);
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn a_gate_that_runs_on_no_good_page_is_refused() {
    // `stopped` checks that nothing was kept.
    let fails = |spoil: &dyn Fn(&Machine)| {
        let machine = Machine::new(TWO_ROOTS);
        spoil(&machine);
        Rig::stopped(machine).err()
    };
    assert_eq!(fails(&|machine| machine.refuse_gates(true)), Some(Error::GateNotMapped));
    assert_eq!(fails(&|machine| machine.state().unusual_gates = true), Some(Error::GateNotMapped));
    let in_the_window = |machine: &Machine| machine.state().code_at = Some(TWO_ROOTS.window(8, 2));
    assert_eq!(fails(&in_the_window), Some(Error::GateNotMapped));
    let in_itself = |machine: &Machine| machine.state().code_at = Some(TWO_ROOTS.gate_text());
    assert_eq!(fails(&in_itself), Some(Error::GateNotMapped));
    assert_eq!(fails(&|_| {}), None);
}

#[test]
fn a_failed_start_gives_no_table_back_that_a_view_may_be_running_on() {
    for layout in LAYOUTS.iter().copied().filter(|layout| layout.hierarchical) {
        let rig = Rig::stopped(Machine::new(layout)).unwrap();
        let sandbox = rig.sandbox();
        let tables =
            || rig.hal().template.with(|t| super::audit::contents(&rig.machine, t.tables.roots()).own_tables.len());
        let before = tables();
        // The gate's two pages are translated by two tables, and something is wrong with the second.
        rig.machine.skip_gates(511);
        let second = layout.gates(512, 1).start();
        rig.machine.edit(second, 0, |_| 0);
        rig.machine.edit(second, 1, |raw| raw & !super::layout::WRITE);
        assert!(matches!(rig.start_cpu(0), Err(Error::Escalation { page, .. }) if page == second));
        assert!(tables() > before);
        audit(&rig, &[&sandbox]);
        rig.machine.edit(second, 1, |raw| raw | super::layout::WRITE);
        rig.start_cpu(0).unwrap();
        drop(sandbox);
        rig.sandbox().call(|| (), ()).unwrap();
    }
}

#[test]
#[cfg_attr(miri, ignore = "about rules")]
fn gates_may_lie_far_apart_from_the_image() {
    // In the other half, whose root the template does not have before.
    let layout = TWO_ROOTS;
    let rig = Rig::stopped(Machine::new(layout)).unwrap();
    let mut sandbox = rig.sandbox();
    rig.machine.gates_at(PageRange::new(VirtAddr(0x40_0000).page(), 16).unwrap());
    rig.start_cpu(0).unwrap();
    sandbox.call(|| (), ()).unwrap();
    rig.sandbox().call(|| (), ()).unwrap();
}

#[test]
#[cfg_attr(miri, ignore = "leaves a thread behind")]
fn an_exception_in_the_gate_reaches_the_host() {
    let rig = Rig::new(USUAL);
    let hook = cpu(|cpu| cpu.hook).unwrap();
    let report = FatalReport { syndrome: Syndrome { class: 1, detail: 2 }, at: VirtAddr(3), address: VirtAddr(4) };
    assert_eq!(hook.hal, core::ptr::from_ref(rig.hal()).cast());
    // The simulated host takes note and stops there, on a thread of its own.
    let hook = Ported(hook);
    let _forever = std::thread::spawn(move || {
        let hook = { hook }.0;
        // SAFETY: the hook came from this HAL, which the test keeps while the thread is in it.
        unsafe { (hook.call)(hook.hal, &report) }
    });
    assert_eq!(rig.machine.fatal_report(), report);
}

struct Ported(crate::arch::FatalHook);

// SAFETY: the HAL behind the pointer is `Sync`.
unsafe impl Send for Ported {}
