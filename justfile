# `./bootstrap RECIPE` installs what is missing first; `just RECIPE` needs everything in place.

set positional-arguments

export CARGO_TARGET_DIR := env('CARGO_TARGET_DIR', justfile_directory() / 'target')

# Any of these would replace the flags and the targets that the kernels are built with.
unexport CARGO_BUILD_TARGET
unexport CARGO_ENCODED_RUSTFLAGS
unexport RUSTFLAGS

x86 := 'x86_64-unknown-none'
arm := 'aarch64-unknown-none-softfloat'
arm_vectors := 'aarch64-unknown-none'

just := quote(just_executable()) + ' --justfile ' + quote(justfile())
runner := quote(CARGO_TARGET_DIR / 'debug/qemu-runner')
files := quote(justfile_directory() / 'examples/files')

# What runs on the build machine, what runs under Miri, and what each bare-metal target takes.
host_packages := '-p sandbox-core -p arch-x86_64 -p arch-aarch64 -p sandbox-mode -p qemu-runner'
miri_packages := '-p sandbox-core'
guest_libraries := '-p sandbox-core -p sandbox-mode -p platform-qemu -p demo'
guest_packages := guest_libraries + ' -p conformance -p hello -p threads -p soak -p windows'

# The suite on a kernel that maps nothing globally, and has its ASID in the one root or in the other.
asids := '-- debug/conformance --suite conformance --timeout 300 --args asids=low' \
    + ' -- debug/conformance --suite conformance --timeout 300 --cpu max --args asids=high' \
    + ' -- debug/threads --suite threads --timeout 300 --smp 4 --args asids=low'

# The kernel that has nothing of platform-qemu, on virt: both ways to map itself, without a tick, begun at EL2, where it goes down
# on one CPU and stays on the other, and on a CPU with memory tags.
foreign_arm := replace(replace('
    | --timeout 300
    | --timeout 300 --cpu max
    | --timeout 300 --args local
    | --timeout 300 --args local --cpu max
    | --timeout 300 --args tickless
    | --timeout 300 --args tickless --cpu max
    | --timeout 300 --args own --machine virtualization=on
    | --timeout 300 --machine virtualization=on --cpu max
    | --timeout 300 --args own --machine mte=on --cpu max
', '|', '-- ../' + arm_vectors + '/debug/foreign-host-aarch64 --suite foreign'), "\n", ' ')
more_arm := asids + ' ' + foreign_arm

# List the recipes
default:
    @{{ just }} --list --unsorted

# Parse FILES (or the samples) in sandboxes, on both machines
[no-exit-message]
demo *FILES: _runner
    #!/bin/sh
    set -eu
    folder={{ quote(invocation_directory()) }}
    if [ $# -eq 0 ]; then
        folder={{ files }}
        set -- picture.png certificate.der
    fi
    {{ runner }} check --directory "$folder" -- "$@"
    cargo build --quiet --release -p demo --bin demo --target {{ x86 }} --target {{ arm }}
    status=0
    for target in {{ x86 }} {{ arm }}; do
        echo "== demo for $target"
        {{ runner }} "$CARGO_TARGET_DIR/$target/release/demo" --cpu max --icount --timeout 300 --directory "$folder" -- "$@" || status=1
    done
    exit $status

# Run all tests
test: test-host test-x86 test-arm

# Run the tests of everything that works on the build machine
[no-exit-message]
test-host: _runner
    @{{ runner }} tally sh -c '\
        cargo test --no-fail-fast {{ host_packages }}; status=$?; \
        cargo test -p demo --lib && exit $status'

# Boot the conformance suite and the examples on q35
test-x86: (_boots x86) _foreign-x86

# Boot the conformance suite and the examples on virt
test-arm: _foreign-arm (_boots arm more_arm)

# Count the instructions of a call, on both machines
[no-exit-message]
bench: _runner
    cargo build --quiet --release -p conformance --bin bench --target {{ x86 }} --target {{ arm }}
    @cd "$CARGO_TARGET_DIR" && {{ runner }} suite \
        {{ x86 }}/release/bench --icount --cpu max --timeout 300 -- \
        {{ arm }}/release/bench --icount --cpu max --timeout 300 -- \
        {{ arm }}/release/bench --icount --cpu max --timeout 300 --args asids=high

# Disturb sandboxes on four CPUs from all sides: `--rounds N`, each on both machines, beginning with `--seed S`
[no-exit-message]
soak *OPTIONS: _runner
    #!/bin/sh
    set -eu
    rounds=1 seed=1
    while [ $# -gt 0 ]; do
        case "$1 ${2-}" in
        "--rounds "*[!0-9]* | "--seed "*[!0-9]* | "--rounds " | "--seed ")
            echo "soak: $1 takes a number" >&2; exit 2 ;;
        "--rounds "*) rounds=$2 ;;
        "--seed "*) seed=$2 ;;
        *) echo "soak: no option '$1': --rounds N, --seed S" >&2; exit 2 ;;
        esac
        shift 2
    done
    cargo build --quiet --release -p soak --target {{ x86 }} --target {{ arm }}
    set --
    while [ "$rounds" -gt 0 ]; do
        [ $# -eq 0 ] || set -- "$@" --
        set -- "$@" \
            "$CARGO_TARGET_DIR/{{ x86 }}/release/soak" --suite soak --smp 4 --cpu max --timeout 120 --nmis 3 --args "seed=$seed" -- \
            "$CARGO_TARGET_DIR/{{ arm }}/release/soak" --suite soak --smp 4 --cpu max --timeout 120 --args "seed=$seed" -- \
            "$CARGO_TARGET_DIR/{{ arm }}/release/soak" --suite soak --smp 4 --timeout 120 --args "seed=$seed asids=low"
        rounds=$((rounds - 1)) seed=$((seed + 1))
    done
    {{ runner }} suite "$@"

# Interrupt the HAL at every instruction of its windows, on both machines
[no-exit-message]
inject: _windows
    @cd "$CARGO_TARGET_DIR" && {{ runner }} inject \
        {{ x86 }}/release/windows --cpu max --timeout 600 -- \
        {{ x86 }}/release/windows --timeout 600 -- \
        {{ arm }}/release/windows --cpu max --machine mte=on --timeout 600 -- \
        {{ arm }}/release/windows --timeout 600 -- \
        {{ arm }}/release/windows --args asids=low --timeout 600 -- \
        {{ arm }}/release/windows --cpu max --args asids=high --timeout 600

# Count the instructions of interrupts with and without the HAL, on both machines
[no-exit-message]
trace: _windows
    @cd "$CARGO_TARGET_DIR" && {{ runner }} trace \
        {{ x86 }}/release/windows --cpu max --args trace -- \
        {{ x86 }}/release/windows --args trace -- \
        {{ arm }}/release/windows --cpu max --args trace -- \
        {{ arm }}/release/windows --args trace -- \
        {{ arm }}/release/windows --cpu max --args 'trace asids=low' -- \
        {{ arm }}/release/windows --args 'trace asids=high'

# Run the arch-neutral tests under Miri (with a nightly Rust that has it)
[no-exit-message]
miri: _runner
    #!/bin/sh
    set -eu
    if ! cargo +nightly miri setup >/dev/null 2>&1; then
        echo 'miri: skipped, no nightly Rust with miri and rust-src' \
            '(rustup toolchain install nightly --component miri --component rust-src)' >&2
        # Nobody reads the line in continuous integration.
        [ "${CI:-}" != true ]
        exit
    fi
    # Miri says so each time that it cannot optimize.
    export CARGO_PROFILE_DEV_OPT_LEVEL=0
    {{ runner }} tally cargo +nightly miri test {{ miri_packages }}

# Check formatting, lints and documentation
[no-exit-message]
lint:
    cargo fmt --all --check
    cargo clippy --quiet {{ host_packages }} --all-targets -- -D warnings
    cargo clippy --quiet -p demo --lib --profile test -- -D warnings
    cargo clippy --quiet --target {{ x86 }} {{ guest_packages }} -p arch-x86_64 --lib --bins --examples -- -D warnings
    cargo clippy --quiet --target {{ x86 }} -p foreign-host-x86_64 -- -D warnings
    cargo clippy --quiet --target {{ arm }} {{ guest_packages }} -p arch-aarch64 --lib --bins --examples -- -D warnings
    cargo clippy --quiet --target {{ arm_vectors }} -p foreign-host-aarch64 -- -D warnings
    RUSTDOCFLAGS='-D warnings' cargo doc --quiet --no-deps --target {{ x86 }} {{ guest_libraries }} -p arch-x86_64 --lib
    RUSTDOCFLAGS='-D warnings' cargo doc --quiet --no-deps --target {{ arm }} {{ guest_libraries }} -p arch-aarch64 --lib

# Everything that must hold before a change lands, with the time each part takes
[no-exit-message]
ci:
    #!/bin/sh
    set -eu
    times=
    for part in lint test-host test-x86 test-arm soak inject trace miri bench; do
        start=$(date +%s)
        echo "==== $part"
        if ! {{ just }} "$part"; then
            echo "ci: $part failed after $(($(date +%s) - start)) s" >&2
            exit 1
        fi
        times="$times$(printf '%6d s  %s' $(($(date +%s) - start)) "$part")
    "
    done
    printf '%s\n' '==== passed' "$times"

_runner:
    @cargo build --quiet -p qemu-runner

_windows: _runner
    cargo build --quiet --release -p windows --target {{ x86 }} --target {{ arm }}

# Each kernel on the default CPU and on one with every feature QEMU has.
[no-exit-message]
_boots target more='': _runner
    cargo build --quiet --target {{ target }} -p conformance --bin conformance -p threads --bin threads -p hello --bin hello
    cargo build --quiet --target {{ target }} -p platform-qemu --example boot
    cargo build --quiet --target {{ target }} --release -p demo --bin demo
    @sha256=$(cat {{ files }}/picture.png.sha256) && cd "$CARGO_TARGET_DIR/{{ target }}" && {{ runner }} suite \
        debug/conformance --suite conformance --timeout 300 -- \
        debug/conformance --suite conformance --timeout 300 --cpu max -- \
        debug/threads --suite threads --timeout 300 -- \
        debug/threads --suite threads --timeout 300 --smp 4 -- \
        debug/threads --suite threads --timeout 300 --smp 4 --cpu max -- \
        debug/examples/boot --expect ok -- \
        debug/examples/boot --expect ok --cpu max -- \
        debug/examples/boot --expect ok --smp 8 -- \
        debug/hello -- \
        debug/hello --cpu max -- \
        debug/hello --smp 4 -- \
        release/demo --icount --directory {{ files }} --expect "$sha256" picture.png certificate.der -- \
        release/demo --icount --directory {{ files }} --expect "$sha256" picture.png certificate.der --cpu max {{ more }}

# A kernel of another kind: the suite on both CPUs with both mappings of its image, its own checks, and what the HAL refuses. Built by
# itself: together with the conformance kernel, the suite would bring along this repository's platform.
[no-exit-message]
_foreign-x86: _runner
    cargo build --quiet --target {{ x86 }} -p foreign-host-x86_64
    @cd "$CARGO_TARGET_DIR/{{ x86 }}/debug" && {{ runner }} suite \
        foreign-host-x86_64 --suite foreign-host --timeout 300 -- \
        foreign-host-x86_64 --suite foreign-host --timeout 300 --args 'open preempt' -- \
        foreign-host-x86_64 --suite foreign-host --timeout 300 --args 'shared preempt' --cpu max -- \
        foreign-host-x86_64 --suite foreign-host --timeout 300 --args open --cpu max -- \
        foreign-host-x86_64 --suite foreign-host --args own -- \
        foreign-host-x86_64 --suite foreign-host --args 'own open shared' --cpu max -- \
        foreign-host-x86_64 --suite foreign-host --args refusals -- \
        foreign-host-x86_64 --suite foreign-host --args refusals --cpu max

_foreign-arm:
    cargo build --quiet --target {{ arm_vectors }} -p foreign-host-aarch64
