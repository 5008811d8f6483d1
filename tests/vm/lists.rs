//! Which tests the machine runs. To add one, name it here; to add a test program, add a list.

/// Tests of one program.
pub(crate) struct List {
    /// The test program, a directory of `tests/`.
    pub(crate) program: &'static str,
    /// Their full names in it.
    pub(crate) tests: &'static [&'static str],
}

/// What is run.
pub(crate) const LISTS: [List; 2] = [
    List {
        program: "sandbox",
        tests: &[
            "contract::the_limits_that_the_program_sees_are_the_cgroups",
            "contract::a_program_is_in_one_leaf_of_every_hierarchy_and_nothing_of_it_is_elsewhere",
            "gvisor::the_sentry_is_an_unprivileged_user_under_a_filter_in_every_thread",
            "contract::processes_end_at_their_limit_with_an_error_of_the_programs_own",
            "contract::a_daemon_dies_with_the_job_and_does_not_hold_it_up",
            "seccomp::system_calls_that_the_profile_does_not_name_are_refused",
            "command::the_exit_status_is_the_programs_own_or_says_who_ended_it",
            "command::a_record_tells_every_kind_of_failure",
            "privileges::whoever_has_parsed_a_result_has_no_privileges",
        ],
    },
    List {
        program: "alone",
        tests: &[
            "death::a_guest_that_is_stopped_is_killed_through_its_cgroup",
            "residue::jobs_that_end_badly_leave_nothing",
            "residue::a_cgroup_that_exists_is_not_taken_over_and_nothing_is_made_beside_it",
            "residue::a_leaf_is_made_although_others_took_away_its_parents_and_their_controllers",
            "residue::the_last_process_of_ours_removes_the_directory_of_all_leaves",
            "sweep::an_owner_killed_at_any_step_leaves_nothing_after_the_next_start",
            "sweep::what_only_looks_like_ours_is_untouched",
            "sweep::a_cgroup_that_is_half_there_is_removed_by_its_record",
        ],
    },
];
