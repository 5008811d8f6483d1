//! The executor image `python` with Python's own tests in it: the file that a sandbox gets, and the
//! tree that it was made of.

use crate::host::state_dir;
use std::path::PathBuf;
use tako_vm::image::Images;
use tako_vm::image::build;
use tako_vm::image::recipe::Recipe;
use tako_vm::sys::apt::Sources;
use tako_vm::sys::place;

const NAME: &str = "python-testsuite";

/// Python's tests, and those of sqlite3, which Debian's package leaves out.
const PACKAGES: [&str; 2] = ["libpython3.11-testsuite", "pypy3-lib-testsuite"];

pub(crate) struct Tested {
    pub(crate) image: PathBuf,
    pub(crate) tree: PathBuf,
}

/// Builds it, unless the state directory has it already.
pub(crate) fn provide() -> Tested {
    let recipe = Recipe::python().unwrap();
    let recipe = recipe.with(NAME.parse().unwrap(), &PACKAGES);
    let images = Images::at(&state_dir());
    let _lock = place::lock(&state_dir().join("setup.lock"), &mut || ()).unwrap();
    let tree = images.tree(&recipe);
    let current = images
        .find(NAME)
        .is_ok_and(|image| build::is_current(&image.manifest, &recipe));
    if !(current && tree.exists()) {
        let proxy = std::env::var_os("http_proxy").and_then(|proxy| proxy.into_string().ok());
        let sources = Sources::of_system(proxy).unwrap();
        build::build(&images, &recipe, &sources, &mut |line| println!("{line}")).unwrap();
    }
    Tested {
        image: images.find(NAME).unwrap().path,
        tree,
    }
}
