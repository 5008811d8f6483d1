//! What killed processes have left in the state directory, and clearing it away.

use super::report::Check;
use crate::cli::{one_line, setup};
use crate::sandbox;
use std::path::Path;

const ID: &str = "leftovers";

const AGAIN: &str = "mend that, and run `sudo tako-vm doctor --fix` again";

/// Looks for it; with `fix`, clears it away.
pub(super) fn check(state_dir: &Path, fix: bool) -> Check {
    if !state_dir.exists() {
        return Check::ok(ID, "none");
    }
    let check = if fix {
        clear(state_dir)
    } else {
        look(state_dir)
    };
    let mut check = check.unwrap_or_else(|why| Check::fail(ID, why, AGAIN));
    // Where they cannot be listed, the check of the cgroups says so.
    let strangers = sandbox::strangers(state_dir).unwrap_or_default();
    if !strangers.is_empty() {
        check.details.push(format!(
            "cgroups of sandboxes of other state directories, which are not touched: {}",
            strangers.len()
        ));
    }
    check
}

fn look(state_dir: &Path) -> Result<Check, String> {
    let orphans = sandbox::orphans(state_dir).map_err(|error| one_line(&error))?;
    let unfinished = setup::unfinished(state_dir).map_err(|error| one_line(&error))?;
    if orphans.is_empty() && unfinished.is_empty() {
        return Ok(Check::ok(ID, "none"));
    }
    let shown = unfinished.iter().map(|path| path.display().to_string());
    let details = orphans.iter().cloned().chain(shown).collect();
    let found = format!(
        "{} sandboxes and file stores whose process was killed, {} unfinished files of a setup",
        orphans.len(),
        unfinished.len()
    );
    Ok(Check::warn(ID, found, "`sudo tako-vm doctor --fix`").with_details(details))
}

fn clear(state_dir: &Path) -> Result<Check, String> {
    let swept = sandbox::sweep(state_dir).map_err(|error| one_line(&error))?;
    setup::sweep_unless_busy(state_dir).map_err(|error| one_line(&error))?;
    if swept.left.is_empty() {
        let found = format!("cleared away: {}", swept.removed.len());
        return Ok(Check::ok(ID, found).with_details(swept.removed));
    }
    let details = swept.left.iter().map(|left| one_line(left)).collect();
    let found = format!("{} could not be cleared away", swept.left.len());
    let fix = "run it again; a process that not even SIGKILL ends goes with the next boot";
    Ok(Check::fail(ID, found, fix).with_details(details))
}
