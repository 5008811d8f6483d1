//! The seccomp profile of the guest: data in `seccomp/python.json`, one reason per rule.
//!
//! runsc skips a name that it does not know without a word, so the profile is compiled with
//! libseccomp first, which refuses it.

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};
use serde::Deserialize;
use std::collections::HashSet;

/// The profile as it is shipped.
const PYTHON: &str = include_str!("../../seccomp/python.json");

/// Why a profile cannot be used. Then nothing runs.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum SeccompError {
    #[error("the seccomp profile does not parse")]
    Parse { source: serde_json::Error },
    #[error("the seccomp profile lets everything pass by default")]
    NotDenying,
    #[error("the seccomp profile gives no reason for `{names}`")]
    NoReason { names: String },
    #[error("the seccomp profile names `{name}`, which is no system call")]
    UnknownSyscall { name: String },
    #[error(
        "the seccomp profile has two conditions on argument {index} of `{name}`, which runsc would read as either"
    )]
    TwoConditions { name: String, index: usize },
    #[error("the seccomp profile asks for `{action:?}`, which runsc cannot do")]
    Action { action: LinuxSeccompAction },
    #[error("the seccomp profile does not compile")]
    Compile {
        source: libseccomp::error::SeccompError,
    },
    #[error("the seccomp profile does not fit the runtime specification")]
    Spec { source: oci_spec::OciSpecError },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    #[serde(rename = "comment")]
    _comment: String,
    default_action: LinuxSeccompAction,
    architectures: Vec<Arch>,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    names: Vec<String>,
    action: LinuxSeccompAction,
    reason: String,
    #[serde(default)]
    args: Vec<LinuxSeccompArg>,
}

/// Calls that in gVisor end in the sentry, and in Linux write out every file system of the host.
const GVISOR_ONLY: [&str; 2] = ["sync", "syncfs"];

/// Types and protocols of Internet sockets (`linux/in.h`): TCP, UDP, ping, and none named.
///
/// Linux asks the host for a module when it is asked for any other pair, whoever asks.
const SOCKETS: [(u64, u64); 6] = [(1, 0), (1, 6), (2, 0), (2, 17), (2, 1), (2, 58)];

/// The type in the second argument of `socket`, without its flags (`SOCK_TYPE_MASK`).
const SOCKET_TYPE: u64 = 0xf;

/// The same profile as Linux itself is to enforce it: with errors instead of tracers, without the
/// calls that reach the whole host, and with no sockets that make the host load a module.
///
/// runsc drops the number of an error, so the profile asks for a tracer where it wants ENOSYS. For
/// Linux that is said outright: nobody who traces a container could then let such a call pass.
///
/// # Errors
/// When oci-spec refuses a value, which would be a defect of ours.
pub(super) fn for_linux(mut seccomp: LinuxSeccomp) -> Result<LinuxSeccomp, OciSpecError> {
    let shipped = seccomp.syscalls().iter().flatten();
    let calls: Result<Vec<_>, _> = shipped.map(without_modules).collect();
    let mut calls = calls?.concat();
    for call in &mut calls {
        let mut names = call.names().clone();
        names.retain(|name| !GVISOR_ONLY.contains(&name.as_str()));
        call.set_names(names);
        if call.action() == LinuxSeccompAction::ScmpActTrace {
            call.set_action(LinuxSeccompAction::ScmpActErrno)
                .set_errno_ret(Some(libc::ENOSYS.unsigned_abs()));
        }
    }
    seccomp.set_syscalls(Some(calls));
    Ok(seccomp)
}

/// For Internet sockets, one rule for each of [`SOCKETS`]; any other rule as it is.
///
/// Linux's runtimes hold a rule to all its conditions, as long as no argument has two of them.
fn without_modules(call: &LinuxSyscall) -> Result<Vec<LinuxSyscall>, OciSpecError> {
    let families = [libc::AF_INET, libc::AF_INET6].map(|family| u64::from(family.unsigned_abs()));
    let conditions = call.args().clone().unwrap_or_default();
    let internet = conditions.iter().any(|arg| families.contains(&arg.value()));
    if call.names() != &["socket"] || !internet {
        return Ok(vec![call.clone()]);
    }
    let narrowed = SOCKETS.into_iter().map(|(kind, protocol)| {
        let kind = LinuxSeccompArgBuilder::default()
            .index(1usize)
            .value(SOCKET_TYPE)
            .value_two(kind)
            .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
            .build()?;
        let protocol = LinuxSeccompArgBuilder::default()
            .index(2usize)
            .value(protocol)
            .op(LinuxSeccompOperator::ScmpCmpEq)
            .build()?;
        let mut call = call.clone();
        call.set_args(Some([&conditions[..], &[kind, protocol]].concat()));
        Ok(call)
    });
    narrowed.collect()
}

/// The shipped profile, checked and compiled once with libseccomp.
///
/// # Errors
/// [`SeccompError`] when it does not hold what this module promises.
pub fn load() -> Result<LinuxSeccomp, SeccompError> {
    parse(PYTHON)
}

fn parse(text: &str) -> Result<LinuxSeccomp, SeccompError> {
    let profile: Profile =
        serde_json::from_str(text).map_err(|source| SeccompError::Parse { source })?;
    if profile.default_action != LinuxSeccompAction::ScmpActErrno {
        return Err(SeccompError::NotDenying);
    }
    profile.rules.iter().try_for_each(check)?;
    compile(&profile)?;
    to_oci(&profile).map_err(|source| SeccompError::Spec { source })
}

fn check(rule: &Rule) -> Result<(), SeccompError> {
    if rule.reason.trim().is_empty() {
        return Err(SeccompError::NoReason {
            names: rule.names.join(", "),
        });
    }
    let mut indices = HashSet::new();
    for arg in &rule.args {
        if !indices.insert(arg.index()) {
            let name = rule.names.join(", ");
            return Err(SeccompError::TwoConditions {
                name,
                index: arg.index(),
            });
        }
    }
    for name in &rule.names {
        if ScmpSyscall::from_name(name).is_err() {
            return Err(SeccompError::UnknownSyscall { name: name.clone() });
        }
    }
    Ok(())
}

/// Builds the same filter as a kernel would be given; it is thrown away, the errors are not.
fn compile(profile: &Profile) -> Result<(), SeccompError> {
    let failed = |source| SeccompError::Compile { source };
    let refuse = ScmpAction::Errno(libc::EPERM);
    let mut filter = ScmpFilterContext::new(refuse).map_err(failed)?;
    filter.add_arch(ScmpArch::Native).map_err(failed)?;
    for rule in &profile.rules {
        let action = action(rule.action)?;
        let conditions: Vec<_> = rule.args.iter().map(condition).collect();
        for name in &rule.names {
            let call = ScmpSyscall::from_name(name).map_err(failed)?;
            filter
                .add_rule_conditional(action, call, &conditions)
                .map_err(failed)?;
        }
    }
    Ok(())
}

fn action(action: LinuxSeccompAction) -> Result<ScmpAction, SeccompError> {
    match action {
        LinuxSeccompAction::ScmpActAllow => Ok(ScmpAction::Allow),
        // Without a tracer the call fails with ENOSYS, in gVisor as in Linux (seccomp(2)).
        LinuxSeccompAction::ScmpActTrace => Ok(ScmpAction::Trace(0)),
        // KILL_PROCESS, LOG and NOTIFY stop the start; ERRNO is the default already.
        action => Err(SeccompError::Action { action }),
    }
}

fn condition(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let index = u32::try_from(arg.index()).unwrap_or(u32::MAX);
    let (operator, datum) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(arg.value()),
            arg.value_two().unwrap_or(0),
        ),
    };
    ScmpArgCompare::new(index, operator, datum)
}

fn to_oci(profile: &Profile) -> Result<LinuxSeccomp, oci_spec::OciSpecError> {
    let calls = profile.rules.iter().map(|rule| -> Result<LinuxSyscall, _> {
        let call = LinuxSyscallBuilder::default()
            .names(rule.names.clone())
            .action(rule.action);
        if rule.args.is_empty() {
            call.build()
        } else {
            call.args(rule.args.clone()).build()
        }
    });
    LinuxSeccompBuilder::default()
        .default_action(profile.default_action)
        .architectures(profile.architectures.clone())
        .syscalls(calls.collect::<Result<Vec<_>, _>>()?)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The shipped profile with one rule more.
    fn with_rule(rule: &str) -> Result<LinuxSeccomp, SeccompError> {
        let mut profile: serde_json::Value = serde_json::from_str(PYTHON).unwrap();
        let rules = profile["rules"].as_array_mut().unwrap();
        rules.push(serde_json::from_str(rule).unwrap());
        parse(&profile.to_string())
    }

    #[test]
    fn the_shipped_profile_compiles_and_reaches_the_specification_whole() {
        let seccomp = load().unwrap();
        let profile: Profile = serde_json::from_str(PYTHON).unwrap();
        assert_eq!(
            seccomp.syscalls().as_ref().unwrap().len(),
            profile.rules.len()
        );
        assert_eq!(seccomp.default_action(), LinuxSeccompAction::ScmpActErrno);
    }

    #[test]
    fn for_linux_it_is_the_same_without_tracers_host_wide_calls_and_modules() {
        let shipped = load().unwrap();
        let linux = for_linux(shipped.clone()).unwrap();
        let rules = |seccomp: &LinuxSeccomp| seccomp.syscalls().clone().unwrap();
        let changed: Vec<_> = rules(&linux)
            .into_iter()
            .filter(|rule| !rules(&shipped).contains(rule))
            .collect();
        let added = 2 * (SOCKETS.len() - 1);
        assert_eq!(rules(&linux).len(), rules(&shipped).len() + added);
        let (sockets, others): (Vec<_>, Vec<_>) = changed
            .into_iter()
            .partition(|rule| rule.names() == &["socket"]);
        assert_eq!(sockets.len(), 2 * SOCKETS.len());
        for rule in sockets {
            let indices = rule.args().iter().flatten().map(LinuxSeccompArg::index);
            assert_eq!(indices.collect::<Vec<_>>(), [0, 1, 2]);
        }
        assert_eq!(others.len(), 2);
        assert!(others[0].names().iter().any(|name| name == "fsync"));
        assert!(rules(&linux).iter().all(|rule| {
            let names = rule.names();
            !names.is_empty()
                && !names
                    .iter()
                    .any(|name| GVISOR_ONLY.contains(&name.as_str()))
        }));
        assert_eq!(others[1].names(), &["clone3"]);
        assert_eq!(others[1].action(), LinuxSeccompAction::ScmpActErrno);
        assert_eq!(others[1].errno_ret(), Some(38));
    }

    #[test]
    fn a_name_that_is_no_system_call_is_refused() {
        let error = with_rule(r#"{"names":["opeen"],"action":"SCMP_ACT_ALLOW","reason":"a slip"}"#);
        assert!(matches!(error, Err(SeccompError::UnknownSyscall { name }) if name == "opeen"));
    }

    #[test]
    fn a_rule_without_a_reason_is_refused() {
        let error = with_rule(r#"{"names":["mount"],"action":"SCMP_ACT_ALLOW","reason":" "}"#);
        assert!(matches!(error, Err(SeccompError::NoReason { .. })));
    }

    #[test]
    fn what_runsc_would_misread_is_refused() {
        let error = with_rule(
            r#"{"names":["socket"],"action":"SCMP_ACT_ALLOW","reason":"two",
                "args":[{"index":0,"value":1,"op":"SCMP_CMP_GE"},{"index":0,"value":9,"op":"SCMP_CMP_LE"}]}"#,
        );
        assert!(matches!(
            error,
            Err(SeccompError::TwoConditions { index: 0, .. })
        ));
        let kill = with_rule(
            r#"{"names":["mount"],"action":"SCMP_ACT_KILL_PROCESS","reason":"runsc exits 128"}"#,
        );
        assert!(matches!(kill, Err(SeccompError::Action { .. })));
    }

    #[test]
    fn a_profile_that_allows_by_default_is_refused() {
        let text = PYTHON.replacen("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", 2);
        assert!(matches!(
            parse(&text),
            Err(SeccompError::NotDenying | SeccompError::Parse { .. })
        ));
    }

    #[test]
    fn what_reaches_out_of_the_sandbox_is_not_allowed() {
        let seccomp = load().unwrap();
        let allowed: HashSet<&str> = seccomp
            .syscalls()
            .iter()
            .flatten()
            .flat_map(|rule| rule.names().iter().map(String::as_str))
            .collect();
        for name in [
            "unshare",
            "setns",
            "mount",
            "umount2",
            "pivot_root",
            "chroot",
            "ptrace",
            "keyctl",
            "bpf",
            "process_vm_readv",
            "process_vm_writev",
            "io_uring_setup",
            "userfaultfd",
            "kexec_load",
            "perf_event_open",
            "open_by_handle_at",
            "init_module",
            "finit_module",
            "reboot",
            "swapon",
            "settimeofday",
            "clock_settime",
            "sethostname",
            "personality",
            "iopl",
            "ioperm",
            "acct",
        ] {
            assert!(!allowed.contains(name), "{name}");
        }
    }

    proptest! {
        // Each case compiles the profile.
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_damaged_profile_is_refused_or_still_denies_what_it_does_not_name(
            at in any::<prop::sample::Index>(),
            with in any::<prop::sample::Index>(),
        ) {
            let shipped = PYTHON.as_bytes();
            let mut damaged = shipped.to_vec();
            damaged[at.index(shipped.len())] = shipped[with.index(shipped.len())];
            let damaged = String::from_utf8_lossy(&damaged);
            if let Ok(seccomp) = parse(&damaged) {
                prop_assert_eq!(seccomp.default_action(), LinuxSeccompAction::ScmpActErrno);
                for rule in seccomp.syscalls().iter().flatten() {
                    let known = |name: &String| ScmpSyscall::from_name(name).is_ok();
                    prop_assert!(rule.names().iter().all(known));
                }
            }
        }
    }
}
