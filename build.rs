//! Builds what `tako-vm` carries inside for its images, so that a plain `cargo build` is enough:
//! `tako-init`, static, and the extension module of the interpreter's hook.
#![expect(clippy::expect_used, reason = "a build script reports by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "a build script has no `sys` and no `config`"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=rootfs/guest");
    println!("cargo::rerun-if-changed=Cargo.lock");
    println!("cargo::rerun-if-changed={END}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let built = build_init(&out, &target);
    fs::copy(built, out.join("tako-init")).expect("the built init can be copied");
    build_end(&out.join("end.so"));
}

/// The source of the extension module.
const END: &str = "rootfs/python/tako_vm_end.c";

/// What it refers to is found in the interpreter that loads it.
fn build_end(to: &Path) {
    let compiler = cc::Build::new()
        .std("c11")
        .opt_level(2)
        .debug(false)
        .pic(true)
        .flag("-fvisibility=hidden")
        .get_compiler();
    let status = compiler
        .to_command()
        .args([
            "-shared",
            "-nostdlib",
            "-Wl,--build-id=none,-z,now",
            "-s",
            "-o",
        ])
        .arg(to)
        .arg(END)
        .status()
        .expect("a C compiler can be started");
    assert!(status.success(), "building `{END}` failed: {status}");
}

/// A cargo of its own: the guest is linked statically, which the host program is not, and its
/// target directory must be another one, since the outer cargo holds the lock of its own.
fn build_init(out: &Path, target: &str) -> PathBuf {
    let cargo = env::var_os("CARGO").expect("cargo sets CARGO");
    let manifest = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let directory = out.join("guest");
    let status = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--locked",
            "--package=tako-guest",
            "--bin=tako-init",
        ])
        .args(["--features=init", "--target", target, "--target-dir"])
        .arg(&directory)
        .current_dir(manifest)
        // Those of the outer build (coverage, sanitizers) do not fit a static binary.
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "building tako-init failed: {status}");
    directory.join(target).join("release").join("tako-init")
}
