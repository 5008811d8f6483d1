//! Checks of what root and `tako-vm setup` have made: user, configuration, state directory, image, runsc.

use super::report::Check;
use crate::cli::{USER, one_line, setup};
use crate::config::{Config, ConfigError};
use crate::image::{Image, Images};
use crate::runc::{Runc, RuncError};
use crate::runsc::provision::{self, CURRENT_RELEASE, Installed, ProvisionError};
use crate::runsc::release;
use crate::sys::account;
use crate::sys::privilege::PrivilegeError;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Unit};
use std::path::Path;

/// The image that jobs run in unless they name another.
const IMAGE: &str = "python";

/// A release this old has missed fixes, also such as this program does not know of yet.
const OLD_DAYS: i32 = 180;

const SETUP: &str = "`sudo tako-vm setup`";

pub(super) fn privileges(result: &Result<(), PrivilegeError>) -> Check {
    match result {
        Ok(()) => Check::ok(
            "privileges",
            "root, with every capability that sandboxes take",
        ),
        Err(PrivilegeError::NotRoot) => Check::needs_root("privileges"),
        Err(error) => Check::fail(
            "privileges",
            one_line(error),
            "give this container the capability, or use a virtual machine",
        ),
    }
}

/// The configuration, and the container runtime if it asks for one in place of gVisor.
pub(super) fn configuration(
    config: &Result<Config, ConfigError>,
    file: Option<&Path>,
    container: Option<&Result<Runc, RuncError>>,
) -> Check {
    let path = file.unwrap_or(Path::new(crate::config::DEFAULT_FILE));
    if let Some(container) = container {
        return permissive(path, container);
    }
    match config {
        Ok(_) if path.exists() => Check::ok("configuration", format!("`{}`", path.display())),
        Ok(_) => Check::ok("configuration", "the defaults"),
        Err(error) => Check::fail(
            "configuration",
            one_line(error),
            format!("mend `{}`: no command runs until then", path.display()),
        ),
    }
}

fn permissive(path: &Path, container: &Result<Runc, RuncError>) -> Check {
    let path = path.display();
    match container {
        Ok(runc) => Check::warn(
            "configuration",
            format!(
                "`{path}`, permissive mode: programs run in `{}` containers and share the kernel of this host, \
                 which is weaker isolation than gVisor",
                runc.kind().name()
            ),
            format!(
                "where gVisor runs, take `security_mode` and `container_runtime` out of `{path}`, then {SETUP}"
            ),
        ),
        Err(error) => Check::fail(
            "configuration",
            format!("`{path}`, permissive mode: {}", one_line(error)),
            "let the package manager install it, where root alone can change it: no job runs until then",
        ),
    }
}

pub(super) fn user() -> Check {
    match account::exists(USER) {
        Ok(true) => Check::ok("user", format!("`{USER}`")),
        Ok(false) => Check::fail("user", format!("there is no user `{USER}`"), SETUP),
        Err(error) => Check::unknown("user", &one_line(&error)),
    }
}

pub(super) fn state_directory(path: &Path) -> Check {
    let shown = path.display();
    match setup::state_directory_exists(path) {
        Ok(true) => Check::ok("state_directory", format!("`{shown}`, root's alone")),
        Ok(false) => Check::fail(
            "state_directory",
            format!("there is no `{shown}`"),
            format!("{SETUP}, or name the right one with `--state-dir`"),
        ),
        Err(error) => Check::fail(
            "state_directory",
            one_line(&error),
            error.hint().unwrap_or_else(|| {
                "keep it below directories of root's alone, such as `/var/lib/tako-vm`".to_owned()
            }),
        ),
    }
}

pub(super) fn image(state_dir: &Path) -> (Check, Option<Image>) {
    match Images::at(state_dir).find(IMAGE) {
        Ok(image) => {
            let manifest = &image.manifest;
            let found = format!(
                "`{IMAGE}`: Python {}, {}, sha256:{}",
                manifest.python,
                setup::megabytes(manifest.size_bytes),
                manifest.digest
            );
            (Check::ok("image", found), Some(image))
        }
        Err(error) => (Check::fail("image", one_line(&error), SETUP), None),
    }
}

/// Whether the installed set is there and unchanged.
pub(super) fn runsc(state_dir: &Path) -> (Check, Option<Installed>) {
    match provision::installed(state_dir) {
        Ok(installed) => {
            let found = format!(
                "release {}, sha256:{}",
                installed.version, installed.identity
            );
            (Check::ok("runsc", found), Some(installed))
        }
        Err(error) => (Check::fail("runsc", one_line(&error), SETUP), None),
    }
}

/// How old it is, and what it therefore lacks.
pub(super) fn runsc_release(installed: &Installed, minimum: Option<Date>) -> Check {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    judge_release(&installed.version, installed.require(minimum), today)
}

fn judge_release(version: &str, allowed: Result<(), ProvisionError>, today: Date) -> Check {
    let id = "runsc_release";
    let Some(day) = release::day(version) else {
        let found = format!("`{version}` does not say how old it is");
        return match allowed {
            Ok(()) => Check::warn(id, found, CURRENT_RELEASE),
            Err(error) => Check::fail(id, error.to_string(), CURRENT_RELEASE),
        };
    };
    let age = days_between(day, today);
    let lacks: Vec<_> = release::lacking(day)
        .map(|fix| format!("{}: {} <{}>", fix.since, fix.without, fix.url()))
        .collect();
    let found = match lacks.len() {
        0 => format!("{age} days old"),
        count => format!("{age} days old, and lacks {count} known security fixes"),
    };
    match allowed {
        Err(error) => Check::fail(id, error.to_string(), CURRENT_RELEASE),
        Ok(()) if lacks.is_empty() && age <= OLD_DAYS => Check::ok(id, found),
        Ok(()) => Check::warn(id, found, CURRENT_RELEASE),
    }
    .with_details(lacks)
}

fn days_between(from: Date, to: Date) -> i32 {
    let span = from.until((Unit::Day, to));
    span.map_or(0, |span| span.get_days())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::report::Verdict;
    use jiff::civil::date;

    fn judge(version: &str, minimum: Option<Date>) -> Check {
        let installed = Installed {
            binary: "/state/runsc/x/runsc".into(),
            identity: String::new(),
            version: version.to_owned(),
        };
        judge_release(version, installed.require(minimum), date(2026, 11, 22))
    }

    #[test]
    fn an_old_release_warns_with_what_it_lacks_and_where_to_get_another() {
        let check = judge("0.0~20240729.0", None);
        assert_eq!(check.verdict, Verdict::Warn);
        assert_eq!(
            check.found,
            "846 days old, and lacks 8 known security fixes"
        );
        assert!(
            check.details[0].starts_with("2025-08-11: "),
            "{:?}",
            check.details
        );
        assert!(check.fix.unwrap().contains("tako-vm setup --runsc"));
    }

    #[test]
    fn a_current_release_is_fine_and_one_without_a_day_is_not() {
        assert_eq!(judge("release-20261116.0", None).verdict, Verdict::Ok);
        assert_eq!(judge("VERSION_MISSING", None).verdict, Verdict::Warn);
        // Nothing known is missing, but nobody has looked since.
        let later = judge_release("release-20260914.0", Ok(()), date(2027, 9, 1));
        assert_eq!(later.verdict, Verdict::Warn);
    }

    #[test]
    fn a_release_below_the_minimum_fails() {
        let minimum = Some(date(2026, 8, 17));
        for version in ["0.0~20240729.0", "VERSION_MISSING"] {
            let check = judge(version, minimum);
            assert_eq!(check.verdict, Verdict::Fail);
            assert!(check.found.contains("asks for 20260817"), "{}", check.found);
        }
        assert_eq!(judge("release-20261116.0", minimum).verdict, Verdict::Ok);
    }
}
