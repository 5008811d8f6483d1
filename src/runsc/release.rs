//! How old a release of runsc is, and what that means.
//!
//! A version string proves no feature: features are probed. It does tell the day, and so which of the
//! fixes that upstream has made since are missing.

use jiff::civil::{Date, date};

/// A fix of gVisor's that a hostile program can feel the lack of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecurityFix {
    /// The first release that has it, or the day of the commit where no release was known to.
    pub since: Date,
    /// What can happen without it.
    pub without: &'static str,
    /// The commit in github.com/google/gvisor.
    pub commit: &'static str,
}

impl SecurityFix {
    /// Where upstream describes it.
    pub fn url(&self) -> String {
        format!("https://github.com/google/gvisor/commit/{}", self.commit)
    }
}

/// Read in upstream's history from 2024-07-29 to 2026-08-21, and chosen for what a program in a
/// sandbox of ours can reach: no network, the systrap platform, an EROFS root, tmpfs and proc.
///
/// Upstream assigns CVEs only to what crosses the boundary of the sandbox; none of these is said to.
pub const SECURITY_FIXES: [SecurityFix; 8] = [
    SecurityFix {
        since: date(2025, 8, 11),
        without: "a descriptor of `/proc/self/mem` that is kept across `execve` gives access to the memory of the new program",
        commit: "1fb4c0861973e5b55d74688179844829e90fb7f6",
    },
    SecurityFix {
        since: date(2025, 12, 15),
        without: "`/proc/PID/maps`, `environ`, `auxv` and `fd` tell of processes that the reader may not trace",
        commit: "561ff6d235e64ed97ee1c3fd1d0f543f159d17bb",
    },
    SecurityFix {
        since: date(2026, 3, 30),
        without: "stack addresses and the layout of systrap's own code in a guest process can be predicted",
        commit: "305818798603ceeb0a07cf02ebd02fab2f3cc1c0",
    },
    SecurityFix {
        since: date(2026, 4, 13),
        without: "a program that changes systrap's shared memory at the right moment makes the sentry panic",
        commit: "2a22300877d552c8e2e228e6ad919e5eda34cb11",
    },
    SecurityFix {
        since: date(2026, 5, 4),
        without: "threads that start at the right moment make the sentry crash (systrap)",
        commit: "670a7948b6518b2a3adf4f4b2615cb02ae29623d",
    },
    SecurityFix {
        since: date(2026, 6, 1),
        without: "a removed directory in a tmpfs that is still in use makes the sentry panic",
        commit: "9b9807a3c82d075307c55da1b8ea0e52c972680c",
    },
    SecurityFix {
        since: date(2026, 6, 22),
        without: "a rename replaces another user's file in a sticky directory such as `/tmp`",
        commit: "b83b17a7083f92b7ca2e890f4618fb685885fd2e",
    },
    SecurityFix {
        since: date(2026, 8, 18),
        without: "the gofer follows a symbolic link that was put in place of a directory (a second line of defence: sandboxes of Tako VM share no directory)",
        commit: "a7402ea5de253311ea085d054fc8540eb26af4be",
    },
];

/// The day that a release is named after: the first eight digits of `release-20260817.0` and of
/// Debian's `0.0~20240729.0` alike. Builds from source have none (`VERSION_MISSING`).
pub fn day(version: &str) -> Option<Date> {
    version
        .split(|letter: char| !letter.is_ascii_digit())
        .filter(|digits| digits.len() == 8)
        .find_map(|digits| Date::strptime("%Y%m%d", digits).ok())
}

/// The fixes that a release of this day lacks, oldest first.
pub fn lacking(day: Date) -> impl Iterator<Item = &'static SecurityFix> {
    SECURITY_FIXES.iter().filter(move |fix| day < fix.since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_is_found_in_every_form_of_a_version() {
        let expected = Some(date(2024, 7, 29));
        for version in [
            "0.0~20240729.0",
            "release-20240729.0",
            "20240729",
            "release-20240729.0-12-gab12cd34ef",
        ] {
            assert_eq!(day(version), expected, "{version}");
        }
        for version in [
            "",
            "VERSION_MISSING",
            "release-20241399.0",
            "1.2.3",
            "123456789",
        ] {
            assert_eq!(day(version), None, "{version}");
        }
    }

    #[test]
    fn a_release_lacks_what_came_after_it() {
        assert_eq!(lacking(date(2024, 7, 29)).count(), SECURITY_FIXES.len());
        let since: Vec<_> = lacking(date(2026, 6, 1)).map(|fix| fix.since).collect();
        assert_eq!(
            since,
            [date(2026, 6, 22), date(2026, 8, 18)],
            "its own is in it"
        );
        assert_eq!(lacking(date(2026, 9, 14)).count(), 0);
    }

    #[test]
    fn the_table_is_in_order_and_names_whole_commits() {
        assert!(SECURITY_FIXES.is_sorted_by_key(|fix| fix.since));
        for fix in SECURITY_FIXES {
            let hexadecimal = fix.commit.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(hexadecimal && fix.commit.len() == 40, "{}", fix.commit);
        }
    }
}
