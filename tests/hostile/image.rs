//! An executor image like the real one, with programs in it that no image has.

use crate::host::{IMAGE, state_dir};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tako_vm::image::Images;
use tako_vm::image::recipe::MAKE_EROFS;
use tako_vm::sys::process;

/// Copies of the interpreter that are set-user-id and set-group-id root, and one with every file
/// capability; returns where the image lies.
pub(crate) fn with_set_id_programs(directory: &Path) -> PathBuf {
    let original = Images::at(&state_dir()).find(IMAGE).unwrap().path;
    let tree = directory.join("tree");
    let mut extract = process::program("fsck.erofs");
    let mut option = std::ffi::OsString::from("--extract=");
    option.push(&tree);
    extract.arg(option).arg("--preserve").arg(original);
    process::run(&mut extract).unwrap();
    let binaries = tree.join("usr/bin");
    for (name, mode) in [
        ("python-setuid", 0o4755),
        ("python-setgid", 0o2755),
        ("python-capable", 0o755),
    ] {
        let path = binaries.join(name);
        fs::copy(binaries.join("python3.11"), &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let image = directory.join("image.erofs");
    let mut set = process::program("setcap");
    set.arg("all+ep").arg(binaries.join("python-capable"));
    process::run(&mut set).unwrap();
    let mut make = process::program("mkfs.erofs");
    // With extended attributes, which ours are made without: there are the capabilities.
    make.args(MAKE_EROFS.iter().filter(|argument| **argument != "-x-1"));
    make.arg(&image).arg(&tree);
    process::run(&mut make).unwrap();
    image
}
