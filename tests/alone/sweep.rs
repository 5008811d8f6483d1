//! What a killed owner leaves is gone with the next start; what lives, and what is not ours, stays.

use crate::alone;
use crate::host::{
    IMAGE, Part, Sandbox, assert_gone, cgroup_parents, cgroups_of, job, names_in,
    processes_that_mention, signal, state_dir,
};
use crate::owner::{
    self, BRIEF, Owner, SPIN, assert_clean, directory, names, run, sandboxes,
    start_and_assert_clean,
};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tako_vm::image::Images;
use tako_vm::sandbox::{
    Order, SandboxError, Step, Swept, TeardownError, orphans, strangers, sweep,
};
use tako_vm::sys::cgroup::{Hierarchies, LeafLimits, Urgency};
use tako_vm::sys::process;
use tokio_util::sync::CancellationToken;

fn mounts() -> usize {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().count()
}

/// Waits until there are so many sandboxes, and returns their names.
fn await_names(state_dir: &Path, count: usize) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let names = names(state_dir, "sandboxes");
        if names.len() == count {
            return names;
        }
        assert!(Instant::now() < deadline, "{names:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Buries what was orphaned and fell to this process, as init does for everybody else's orphans.
fn bury() {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        let children = process::children().unwrap();
        if children.is_empty() {
            return;
        }
        for pid in children {
            process::reap(pid);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What an owner does. Told nothing, it runs one job and looks at its steps.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn every_step_is_told_in_its_order() {
    if let Some(orders) = owner::orders() {
        return owner::own(&orders).await;
    }
    let _alone = alone().await;
    let directory = directory();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let sandboxes = sandboxes(directory.path()).observed(move |id, step| {
        told.lock().unwrap().push((id.to_owned(), step));
    });
    let id = run(&sandboxes, BRIEF).await;
    let expected = Step::ALL.map(|step| (id.clone(), step));
    assert_eq!(*seen.lock().unwrap(), expected);
    assert_clean(directory.path(), &[id]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn an_owner_killed_at_any_step_leaves_nothing_after_the_next_start() {
    let _alone = alone().await;
    let directory = directory();
    let mounts_before = mounts();
    for step in Step::ALL {
        let name = format!("{step:?}");
        Owner::start(directory.path(), &name, 1).was_killed();
        let ids = names(directory.path(), "sandboxes");
        let is_left = usize::from(step != Step::Removed);
        assert_eq!(ids.len(), is_left, "a record outlives its owner: {name}");
        assert_eq!(names(directory.path(), "spools").len(), 1, "{name}");
        let cgroups: usize = ids.iter().map(|id| cgroups_of(id).len()).sum();
        let has_cgroup = ![Step::Recorded, Step::CgroupRemoved, Step::Removed].contains(&step);
        assert_eq!(cgroups > 0, has_cgroup, "{name}");
        assert_eq!(orphans(directory.path()).unwrap().len(), is_left + 1);
        let took = start_and_assert_clean(directory.path(), &ids);
        println!("{name}: {took:?}");
        assert_eq!(orphans(directory.path()).unwrap(), Vec::<String>::new());
        bury();
    }
    assert_eq!(mounts(), mounts_before);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn eight_spinning_orphans_are_gone_within_two_seconds_even_stopped_ones() {
    let _alone = alone().await;
    let directory = directory();
    for stopped in [&[][..], &[Part::Sentry, Part::Runsc]] {
        let mut owner = Owner::stop(directory.path(), "Running", 8);
        let ids = names(directory.path(), "sandboxes");
        assert_eq!(ids.len(), 8);
        for id in &ids {
            let sandbox = Sandbox { id: id.clone() };
            for &part in stopped {
                signal(&sandbox.parts(part), Signal::SIGSTOP);
            }
            assert!(!sandbox.processes().is_empty(), "it lives");
        }
        let swept = sweep(directory.path()).unwrap();
        assert!(
            swept.removed.is_empty(),
            "a stopped owner is one: {swept:?}"
        );
        owner.kill();
        if !stopped.is_empty() {
            // As long as guests need to die by themselves: these cannot.
            std::thread::sleep(Duration::from_secs(1));
            for id in &ids {
                Sandbox { id: id.clone() }.parts(Part::Sentry);
            }
        }
        let took = start_and_assert_clean(directory.path(), &ids);
        println!("8 at once, {stopped:?} stopped: {took:?}");
        bury();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn living_neighbours_are_untouched() {
    let _alone = alone().await;
    let (ours, theirs) = (directory(), directory());
    let mut neighbours =
        [ours.path(), theirs.path()].map(|directory| Owner::start(directory, "never", 2));
    let alive = await_names(ours.path(), 2);
    let others = await_names(theirs.path(), 2);
    Owner::start(ours.path(), "Running", 1).was_killed();
    let mut dead = names(ours.path(), "sandboxes");
    dead.retain(|id| !alive.contains(id));
    let swept = sweep(ours.path()).unwrap();
    assert!(swept.left.is_empty(), "{:?}", swept.left);
    assert_eq!(dead.len(), 1);
    assert_gone(&dead[0]);
    assert_eq!(swept.removed.len(), 2, "a sandbox and a spool: {swept:?}");
    assert_eq!(names(ours.path(), "sandboxes"), alive);
    let strangers = strangers(ours.path()).unwrap();
    assert!(others.iter().all(|id| strangers.contains(id)));
    assert!(!alive.iter().any(|id| strangers.contains(id)));
    for neighbour in &mut neighbours {
        neighbour.ended_well();
    }
    assert_clean(ours.path(), &alive);
    assert_clean(theirs.path(), &others);
    bury();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_sweep_takes_no_sandbox_that_is_just_being_started() {
    let _alone = alone().await;
    let directory = directory();
    let shared = sandboxes(directory.path());
    let done = Arc::new(AtomicBool::new(false));
    let sweeping = {
        let (done, path) = (Arc::clone(&done), directory.path().to_owned());
        std::thread::spawn(move || {
            let mut sweeps = 0;
            while !done.load(Ordering::Relaxed) {
                assert!(sweep(&path).unwrap().left.is_empty());
                sweeps += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            sweeps
        })
    };
    let runs = [(); 12].map(|()| {
        let sandboxes = shared.clone();
        tokio::spawn(async move { run(&sandboxes, BRIEF).await })
    });
    for one in runs {
        one.await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    println!("{} sweeps beside 12 starts", sweeping.join().unwrap());
    assert_clean(directory.path(), &[]);
}

/// An id that is nobody's.
fn id() -> String {
    format!("tako-{}", hex::encode(rand::random::<[u8; 16]>()))
}

/// A cgroup as a killed owner leaves it, with a process in it that ends by itself at no end of ours.
fn plant_cgroup(hierarchies: &Hierarchies, id: &str) -> tokio::process::Child {
    let limits = LeafLimits {
        memory_bytes: 64 << 20,
        pids: 16,
        urgency: Urgency::Job,
    };
    let mut leaf = hierarchies.create(id, limits).unwrap();
    let mut command = process::program("sh");
    command.args(["-c", "while :; do :; done"]);
    let child = process::spawn_in(command, &leaf, None).unwrap();
    leaf.abandon();
    child
}

/// Makes a record as a sandbox does before its cgroup.
fn plant_record(path: &Path) {
    fs::create_dir_all(path).unwrap();
    let directory = fs::metadata(path).unwrap();
    let identity = format!("{}:{}", directory.dev(), directory.ino());
    fs::write(path.join("identity"), identity).unwrap();
}

fn plant(state_dir: &Path, hierarchies: &Hierarchies) -> (String, tokio::process::Child) {
    let id = id();
    let record = state_dir.join("sandboxes").join(&id);
    plant_record(&record);
    fs::create_dir(record.join("runsc")).unwrap();
    fs::write(record.join("runsc/state"), "").unwrap();
    let child = plant_cgroup(hierarchies, &id);
    (id, child)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn two_sweeps_at_once_take_each_orphan_once() {
    let _alone = alone().await;
    let directory = directory();
    let hierarchies = Hierarchies::prepare().unwrap();
    let (ids, children): (Vec<_>, Vec<_>) = (0..20)
        .map(|_| plant(directory.path(), &hierarchies))
        .unzip();
    let path = directory.path();
    let both = std::thread::scope(|scope| {
        [(); 2]
            .map(|()| scope.spawn(move || sweep(path).unwrap()))
            .map(|one| one.join().unwrap())
    });
    let removed: Vec<_> = both
        .iter()
        .flat_map(|swept| &swept.removed)
        .cloned()
        .collect();
    println!("{} and {}", both[0].removed.len(), both[1].removed.len());
    assert_eq!(removed.len(), ids.len(), "{both:?}");
    assert_eq!(BTreeSet::from_iter(&removed), BTreeSet::from_iter(&ids));
    for child in &children {
        let pid = child.id().unwrap();
        assert!(
            !Path::new("/proc").join(pid.to_string()).exists(),
            "{pid} lives"
        );
    }
    assert_clean(directory.path(), &ids);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn an_orphan_that_its_owner_has_frozen_is_thawed_and_killed() {
    let _alone = alone().await;
    let directory = directory();
    let hierarchies = Hierarchies::prepare().unwrap();
    let (id, mut child) = plant(directory.path(), &hierarchies);
    // The owner was killed in the middle of killing.
    let frozen = cgroups_of(&id).iter().any(|cgroup| {
        let (v1, v2) = (cgroup.join("freezer.state"), cgroup.join("cgroup.freeze"));
        v1.exists() && fs::write(v1, "FROZEN").is_ok() || v2.exists() && fs::write(v2, "1").is_ok()
    });
    assert!(frozen);
    let pid = child.id().unwrap();
    start_and_assert_clean(directory.path(), &[id]);
    assert!(!Path::new("/proc").join(pid.to_string()).exists());
    // The sweep has buried it; there is no status to be had.
    child.wait().await.ok();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_cgroup_that_is_half_there_is_removed_by_its_record() {
    let _alone = alone().await;
    let directory = directory();
    let parents = cgroup_parents();
    // As a crash leaves it while it is made, and in an order that no crash leaves.
    for there in [&parents[..1], &parents[parents.len() - 1..]] {
        let id = id();
        plant_record(&directory.path().join("sandboxes").join(&id));
        for parent in there {
            // The parent too: the last process of others may just have removed it.
            fs::create_dir_all(parent.join(&id)).unwrap();
        }
        start_and_assert_clean(directory.path(), &[id]);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_copy_of_a_state_directory_does_not_reach_the_sandboxes_of_the_original() {
    let _alone = alone().await;
    let (original, copy) = (directory(), directory());
    let hierarchies = Hierarchies::prepare().unwrap();
    let id = id();
    let mut child = plant_cgroup(&hierarchies, &id);
    let _planted = Planted(cgroups_of(&id));
    let record = original.path().join("sandboxes").join(&id);
    plant_record(&record);
    let copied = copy.path().join("sandboxes").join(&id);
    fs::create_dir_all(&copied).unwrap();
    fs::copy(record.join("identity"), copied.join("identity")).unwrap();
    let swept = sweep(copy.path()).unwrap();
    assert_eq!(swept.removed, [id.as_str()]);
    assert!(!copied.exists());
    assert!(child.try_wait().unwrap().is_none(), "it was killed");
    let swept = sweep(original.path()).unwrap();
    assert_eq!(swept.removed, [id.as_str()]);
    assert_gone(&id);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_directory_of_somebody_elses_is_not_swept() {
    let _alone = alone().await;
    let directory = directory();
    let record = directory.path().join("sandboxes").join(id());
    plant_record(&record);
    let nobody = Some(65534);
    std::os::unix::fs::chown(directory.path(), nobody, nobody).unwrap();
    let refused = sweep(directory.path()).unwrap_err();
    assert!(matches!(refused, SandboxError::Sweep(_)), "{refused:?}");
    assert!(record.exists());
}

/// Takes away what a test has put where no sandbox would.
struct Planted(Vec<PathBuf>);

impl Drop for Planted {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            fs::remove_dir(path).ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn what_only_looks_like_ours_is_untouched() {
    let _alone = alone().await;
    let directory = directory();
    let hierarchies = Hierarchies::prepare().unwrap();
    let parents = cgroup_parents();
    let records = directory.path().join("sandboxes");
    let elsewhere = directory.path().join("elsewhere");
    let (stranger, linked, file) = (id(), id(), id());
    let short = stranger[..stranger.len() - 1].to_owned();
    let mut planted = Planted(Vec::new());
    let mut children = Vec::new();
    for name in [&stranger, &linked, &file] {
        children.push(plant_cgroup(&hierarchies, name));
        planted.0.extend(cgroups_of(name));
    }
    // Beside our parent directory, and in it under names that are not of our form.
    let beside = parents[0].with_file_name("tako-vmx");
    let odd = [
        beside.clone(),
        beside.join(id()),
        parents[0].join("other"),
        parents[0].join(&short),
    ];
    for path in &odd {
        fs::create_dir(path).unwrap();
        planted.0.push(path.clone());
    }
    fs::create_dir_all(&elsewhere).unwrap();
    fs::write(elsewhere.join("file"), "theirs").unwrap();
    for name in ["other", short.as_str(), "tako-", &stranger.to_uppercase()] {
        fs::create_dir_all(records.join(name)).unwrap();
    }
    symlink(&elsewhere, records.join(&linked)).unwrap();
    fs::write(records.join(&file), "").unwrap();
    fs::create_dir(directory.path().join(id())).unwrap();

    let before = (names_in(directory.path()), names_in(&records));
    let Swept { removed, left } = sweep(directory.path()).unwrap();
    assert!(
        removed.is_empty() && left.is_empty(),
        "{removed:?} {left:?}"
    );
    drop(sandboxes(directory.path()));
    assert_eq!((names_in(directory.path()), names_in(&records)), before);
    assert_eq!(fs::read(elsewhere.join("file")).unwrap(), b"theirs");
    assert!(planted.0.iter().all(|path| path.exists()));
    assert_eq!(orphans(directory.path()).unwrap(), Vec::<String>::new());
    let unknown = strangers(directory.path()).unwrap();
    assert!([&stranger, &file].iter().all(|id| unknown.contains(id)));
    assert!(!unknown.contains(&short) && !unknown.contains(&"other".to_owned()));
    for child in &mut children {
        assert_eq!(child.try_wait().unwrap(), None, "it lives");
        child.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn what_cannot_be_removed_is_named_stays_known_and_stops_no_start() {
    let _alone = alone().await;
    let directory = directory();
    let blocked = Arc::new(Mutex::new(None));
    let block = Arc::clone(&blocked);
    let shared = sandboxes(directory.path()).observed(move |id, step| {
        if step == Step::Attended {
            // A cgroup below it: no rmdir succeeds.
            let below = cgroups_of(id)[0].join("below");
            fs::create_dir(&below).unwrap();
            *block.lock().unwrap() = Some(below);
        }
    });
    let image = Images::at(&state_dir()).find(IMAGE).unwrap();
    let spool = shared.spool();
    let order = Order {
        image: &image.path,
        job: &job(BRIEF),
        spool: &spool,
        events: None,
        begin: None,
        cancel: CancellationToken::new(),
    };
    let error = shared.run(order).await.unwrap_err();
    let below = blocked.lock().unwrap().take().unwrap();
    let _planted = Planted(vec![below.clone()]);
    let SandboxError::Teardown { id, source } = error else {
        panic!("{error}");
    };
    assert!(matches!(source, TeardownError::Cgroup(_)), "{source}");
    assert_eq!(orphans(directory.path()).unwrap(), [id.as_str()]);

    let again = sandboxes(directory.path());
    assert_eq!(again.swept().removed, Vec::<String>::new());
    let left = &again.swept().left;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].id, id);
    assert!(left[0].to_string().contains(&id), "{}", left[0]);
    run(&again, BRIEF).await;

    fs::remove_dir(&below).unwrap();
    assert_eq!(sweep(directory.path()).unwrap().removed, [id.as_str()]);
    assert_gone(&id);
}

/// Waits until every parent of cgroups is gone, or holds those of others.
fn await_parents() {
    let idle = |parent: &PathBuf| {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        let leaves = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        parent.exists() && leaves.count() == 0
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while cgroup_parents().iter().any(idle) {
        assert!(Instant::now() < deadline, "{:?}", cgroup_parents());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn tako_vm(arguments: &[&str]) -> Command {
    let mut command = process::program(env!("CARGO_BIN_EXE_tako-vm"));
    command
        .arg("run")
        .args(arguments)
        .arg("--state-dir")
        .arg(state_dir());
    command
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_command_killed_at_random_twenty_times_leaves_nothing_after_one_more() {
    let _alone = alone().await;
    // What a test before this one has left is not what is looked at here.
    sweep(&state_dir()).unwrap();
    let mut ids = BTreeSet::new();
    let mut spools = 0;
    for round in 0..20_u64 {
        let json = if round % 2 == 0 { &["--json"][..] } else { &[] };
        let mut command = tako_vm(&[&["-c", SPIN][..], json].concat());
        let mut owner = Owner(command.stdout(Stdio::null()).spawn().unwrap());
        let millis = 20 + rand::random_range(0..600);
        std::thread::sleep(Duration::from_millis(millis));
        owner.kill();
        // One that was about to become runsc is the owner still, for some milliseconds.
        let owner = format!("--state-dir {}", state_dir().display());
        let deadline = Instant::now() + Duration::from_secs(5);
        while !processes_that_mention(&owner).is_empty() {
            assert!(Instant::now() < deadline, "{owner}");
            std::thread::sleep(Duration::from_millis(1));
        }
        ids.extend(names(&state_dir(), "sandboxes"));
        spools += names(&state_dir(), "spools").len();
    }
    println!("{} sandboxes and {spools} spools were left", ids.len());
    assert!(!ids.is_empty(), "none was killed half-way");
    let begun = Instant::now();
    let printed = process::run(&mut tako_vm(&["-c", "print('fine')"])).unwrap();
    assert_eq!(
        (printed.stdout.as_str(), printed.stderr.as_str()),
        ("fine\n", "")
    );
    println!("one more took {:?}", begun.elapsed());
    assert_clean(&state_dir(), &ids.into_iter().collect::<Vec<_>>());
    await_parents();
    bury();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn a_command_warns_of_what_it_could_not_clear_away_and_runs() {
    let _alone = alone().await;
    let hierarchies = Hierarchies::prepare().unwrap();
    let (id, _child) = plant(&state_dir(), &hierarchies);
    let below = cgroups_of(&id)[0].join("below");
    fs::create_dir(&below).unwrap();
    let ran = process::run(&mut tako_vm(&["-c", "print('fine')"]));
    fs::remove_dir(&below).unwrap();
    assert_eq!(sweep(&state_dir()).unwrap().removed, [id.as_str()]);
    let printed = ran.unwrap();
    assert_eq!(printed.stdout, "fine\n");
    let warning = format!("warning: cannot clear away `{id}`, which a killed process has left");
    assert!(printed.stderr.starts_with(&warning), "{}", printed.stderr);
    assert_eq!(printed.stderr.lines().count(), 1, "{}", printed.stderr);
}
