//! `tako-vm setup` and `tako-vm image`, with the real tools and the host's own mirror.
//!
//! One state directory is set up once and shared; a test that changes something works on a copy.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy allows it in the test functions, not in what they share"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};
use tako_vm::image::archive;
use tako_vm::image::build::{self, BuildError};
use tako_vm::image::recipe::Recipe;
use tako_vm::image::{ImageError, Images};
use tako_vm::runsc::provision;
use tako_vm::sys::apt::Sources;
use tako_vm::sys::digest::{self, Digest};
use tako_vm::sys::process;
use tempfile::TempDir;

/// A state directory after a whole `tako-vm setup`, what that printed, and an archive of its image.
struct Ready {
    base: PathBuf,
    printed: String,
    archive: PathBuf,
    sha256: String,
}

impl Ready {
    fn state(&self) -> PathBuf {
        self.base.join("state")
    }

    /// Its runsc, which saves others a download.
    fn runsc(&self) -> PathBuf {
        provision::installed(&self.state()).unwrap().binary
    }
}

/// In the state directory of the tests, since a static is never dropped; made anew each time.
static READY: LazyLock<Ready> = LazyLock::new(|| {
    let tests = std::env::var_os("TAKO_VM_STATE_DIR")
        .expect("TAKO_VM_STATE_DIR names no state directory: run these tests with `make test`");
    let base = PathBuf::from(tests).join("setup-test");
    if base.exists() {
        fs::remove_dir_all(&base).unwrap();
    }
    fs::create_dir(&base).unwrap();
    let (state, archive) = (base.join("state"), base.join("archive.tar"));
    let output = setup(&state, &[]);
    assert!(output.status.success(), "{output:?}");
    let exported = tako(&state, &["image", "export", "python", "-o", arg(&archive)]);
    assert!(exported.status.success(), "{exported:?}");
    Ready {
        base,
        printed: text(&output.stdout),
        archive,
        sha256: text(&exported.stdout).trim().to_owned(),
    }
});

fn tako(state: &Path, arguments: &[&str]) -> Output {
    let mut command = process::program(env!("CARGO_BIN_EXE_tako-vm"));
    command.args(arguments).arg("--state-dir").arg(state);
    command.output().unwrap()
}

fn setup(state: &Path, arguments: &[&str]) -> Output {
    tako(state, &[&["setup"], arguments].concat())
}

fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The one line after `error: `, and that after `hint: `.
fn failure(output: &Output) -> (String, String) {
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let stderr = text(&output.stderr);
    let mut lines = stderr.lines();
    let error = lines.next().unwrap().strip_prefix("error: ").unwrap();
    let hint = lines
        .next()
        .map_or("", |line| line.strip_prefix("hint: ").unwrap());
    assert_eq!(lines.next(), None, "{stderr}");
    (error.to_owned(), hint.to_owned())
}

/// A directory that holds a copy of the shared state directory, to change.
fn copy() -> (TempDir, PathBuf) {
    let base = tempfile::tempdir().unwrap();
    let state = base.path().join("state");
    let mut command = process::program("cp");
    command.arg("--archive").arg(READY.state()).arg(&state);
    process::run(&mut command).unwrap();
    (base, state)
}

/// What `find` prints of everything below a directory, sorted.
fn find(directory: &Path, arguments: &[&str]) -> Vec<String> {
    let mut command = process::program("find");
    command.arg(directory).args(arguments);
    let printed = process::run(&mut command).unwrap().stdout;
    let mut lines: Vec<_> = printed.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Everything below a directory, with all that would show a change.
fn listing(directory: &Path) -> Vec<String> {
    find(directory, &["-printf", "%p %m %U %G %s %T@ %C@ %i\n"])
}

/// The names of the files below a directory.
fn names(directory: &Path) -> Vec<String> {
    find(directory, &["-type", "f", "-printf", "%P\n"])
}

const NOTHING: [&str; 0] = [];

fn wait_for(what: &str, at_most: Duration, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < at_most, "no {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs root"]
fn a_dry_run_says_what_would_be_written_and_writes_nothing() {
    let base = tempfile::tempdir().unwrap();
    let state = base.path().join("state");
    let before = listing(base.path());
    let output = setup(&state, &["--dry-run"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(listing(base.path()), before);
    let printed = text(&output.stdout);
    let state = state.display();
    for expected in [
        format!("would create the directory `{state}`"),
        format!("would write `{state}/trees/"),
        format!("would write `{state}/images/python.json`"),
        format!("would write `{state}/runsc/IDENTITY/`"),
    ] {
        assert!(printed.contains(&expected), "no {expected} in {printed}");
    }
    let before = listing(&READY.state());
    let output = setup(&READY.state(), &["--dry-run"]);
    assert!(output.status.success(), "{output:?}");
    assert!(!text(&output.stdout).contains("would"), "{output:?}");
    assert_eq!(listing(&READY.state()), before);
}

#[test]
#[ignore = "needs root"]
fn setup_tells_its_steps_and_a_second_one_is_quick_and_changes_nothing() {
    for start in [
        "[1/5] system user `tako-vm`: ",
        "[2/5] state directory `",
        "[3/5] executor image `python`: built",
        "[4/5] runsc: installed from ",
        "[5/5] PostgreSQL: version ",
    ] {
        let printed = &READY.printed;
        let told = printed.lines().any(|line| line.starts_with(start));
        assert!(told, "no {start} in {printed}");
    }
    let user = nix::unistd::User::from_name("tako-vm").unwrap().unwrap();
    assert_eq!(user.shell, Path::new("/usr/sbin/nologin"));

    let before = listing(&READY.state());
    let started = Instant::now();
    let output = setup(&READY.state(), &[]);
    let took = started.elapsed();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout).matches("up to date").count(), 3);
    assert_eq!(listing(&READY.state()), before);
    assert!(took < Duration::from_secs(1), "it took {took:?}");
}

#[test]
#[ignore = "needs root"]
fn a_further_image_is_built_when_it_is_asked_for_and_brought_up_to_date_from_then_on() {
    let planned = |state: &Path, arguments: &[&str]| {
        let output = setup(state, &[&["--dry-run"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout).contains("/images/data.json`")
    };
    let (_base, state) = copy();
    assert!(!planned(&state, &[]));
    assert!(planned(&state, &["--image", "data"]));
    let images = state.join("images");
    let manifest = fs::read_to_string(images.join("python.json")).unwrap();
    let manifest = manifest.replace("\"name\": \"python\"", "\"name\": \"data\"");
    fs::write(images.join("data.json"), manifest).unwrap();
    assert!(Images::at(&state).find("data").is_ok());
    assert!(planned(&state, &[]));

    let output = setup(&state, &["--image", "perl"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let stderr = text(&output.stderr);
    let named = stderr.contains("images that can be built: `python`, `data`");
    assert!(named, "{stderr}");
}

#[test]
#[ignore = "needs root"]
fn what_was_set_up_can_be_used() {
    let image = Images::at(&READY.state()).find("python").unwrap();
    let manifest = &image.manifest;
    assert_eq!(manifest.protocol, tako_guest::PROTOCOL);
    assert_eq!(manifest.python, "3.11.2");
    assert!(manifest.packages.iter().any(|p| p.name == "tzdata"));
    let file = fs::File::open(&image.path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), manifest.size_bytes);
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 1024).unwrap();
    // EROFS_SUPER_MAGIC_V1 (linux/magic.h)
    assert_eq!(u32::from_le_bytes(magic), 0xE0F5_E1E2);

    let runsc = provision::installed(&READY.state()).unwrap();
    let mut command = process::program(&runsc.binary);
    let printed = process::run(command.arg("--version")).unwrap().stdout;
    assert!(printed.contains(&runsc.version), "{printed}");
}

#[test]
#[ignore = "needs root"]
fn init_and_the_compiled_hook_are_in_the_image_and_nothing_of_them_in_the_kept_tree() {
    let base = tempfile::tempdir().unwrap();
    let root = base.path().join("root");
    let image = Images::at(&READY.state()).find("python").unwrap();
    let mut command = process::program("fsck.erofs");
    command.arg(format!("--extract={}", root.display()));
    process::run(command.arg(&image.path)).unwrap();
    let init = fs::metadata(root.join("usr/lib/tako-vm/tako-init")).unwrap();
    assert_eq!(init.permissions().mode() & 0o7777, 0o755);
    assert_eq!(init.uid(), 0);
    assert_eq!(init.mtime(), 315_532_800);
    let packages = root.join("usr/lib/python3/dist-packages");
    assert!(packages.join("tako_vm.pth").is_file());
    let compiled = packages.join("__pycache__/tako_vm_hook.cpython-311.pyc");
    // Valid by its hash, which is not to be compared with that of the source (PEP 552: 0b01).
    assert_eq!(fs::read(compiled).unwrap()[4..8], [1, 0, 0, 0]);

    let tree = Images::at(&READY.state()).tree(&Recipe::python().unwrap());
    assert!(tree.join("usr/bin/python3").exists());
    assert!(!tree.join("usr/lib/tako-vm").exists());
}

#[test]
#[ignore = "needs root"]
fn a_damaged_byte_is_found_even_with_its_time_set_back_and_setup_mends_it() {
    let (_base, state) = copy();
    let images = Images::at(&state);
    let image = images.find("python").unwrap();
    let mut options = fs::File::options();
    let file = options.read(true).write(true).open(&image.path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 30_000_000).unwrap();
    file.write_all_at(&[!byte[0]], 30_000_000).unwrap();
    file.set_modified(modified).unwrap();
    let error = images.find("python").unwrap_err();
    assert!(matches!(error, ImageError::Damaged { .. }), "{error}");

    let output = setup(&state, &[]);
    assert!(output.status.success(), "{output:?}");
    let mended = images.find("python").unwrap();
    // The same packages make the same image.
    assert_eq!(mended.manifest.digest, image.manifest.digest);
}

#[test]
#[ignore = "needs root"]
fn a_state_directory_that_others_can_write_to_or_read_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let above = base.path().join("above");
    fs::create_dir(&above).unwrap();
    fs::set_permissions(&above, fs::Permissions::from_mode(0o777)).unwrap();
    let (error, _) = failure(&setup(&above.join("state"), &[]));
    let expected = "can be changed by others than root";
    assert!(error.contains(expected), "{error}");
    assert!(!above.join("state").exists());

    fs::set_permissions(&above, fs::Permissions::from_mode(0o755)).unwrap();
    let (error, hint) = failure(&setup(&above, &[]));
    assert!(error.contains("is open to others (mode 0755)"), "{error}");
    assert!(hint.contains("chmod 0700"), "{hint}");
    assert_eq!(names(&above), NOTHING);
}

#[test]
#[ignore = "needs root"]
fn without_root_it_is_one_line_and_a_hint() {
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // A place where an unprivileged user can start it.
    let program = base.path().join("tako-vm");
    fs::copy(env!("CARGO_BIN_EXE_tako-vm"), &program).unwrap();
    for subcommand in [&["setup"][..], &["setup", "--dry-run"], &["image", "ls"]] {
        let mut command = process::program("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]);
        command.arg(&program).args(subcommand);
        let (error, hint) = failure(&command.output().unwrap());
        assert!(error.ends_with("needs root"), "{error}");
        assert!(hint.contains("sudo tako-vm"), "{hint}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_build_without_a_mirror_leaves_a_log_and_nothing_else() {
    let base = tempfile::tempdir().unwrap();
    let images = Images::at(base.path());
    // Nobody listens there any more once the listener is dropped.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let sources = Sources {
        mirrors: vec![format!("http://{closed}/debian")],
        security: vec![format!("http://{closed}/debian-security")],
        http_proxy: None,
        ..Sources::of_system(None).unwrap()
    };
    let recipe = Recipe::python().unwrap();
    let error = build::build(&images, &recipe, &sources, &mut |_| ()).unwrap_err();
    let BuildError::Tree { log, .. } = &error else {
        panic!("{error}")
    };
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains(&closed.port().to_string()), "{log}");
    assert_eq!(names(base.path()), ["trees/failed.log"]);
}

#[test]
#[ignore = "needs root"]
fn a_setup_that_is_killed_leaves_no_builder_behind_and_the_next_one_goes_on() {
    let base = tempfile::tempdir().unwrap();
    let state = base.path().join("state");
    let trees = state.join("trees");
    let runsc = READY.runsc();
    let mut command = process::program(env!("CARGO_BIN_EXE_tako-vm"));
    command.arg("setup").arg("--state-dir").arg(&state);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    wait_for(
        "packages that are being unpacked",
        Duration::from_mins(1),
        || {
            let mut partial = fs::read_dir(&trees).into_iter().flatten().flatten();
            partial.any(|entry| entry.path().join("tree/usr/bin").exists())
        },
    );
    assert!(has_builder(base.path()));
    child.kill().unwrap();
    child.wait().unwrap();
    // Left alone, it would go on for many seconds.
    let most = Duration::from_secs(3);
    wait_for("end of the builder", most, || !has_builder(base.path()));
    assert!(provision::installed(&state).is_err());
    Images::at(&state).find("python").unwrap_err();

    let output = setup(&state, &["--runsc", arg(&runsc)]);
    assert!(output.status.success(), "{output:?}");
    let all = find(&state, &[]);
    assert!(!all.iter().any(|path| path.contains(".partial-")));
    assert_eq!(fs::read_dir(&trees).unwrap().count(), 1);
}

/// Whether any process sees a mount from below this directory: builders have mounts of their own.
fn has_builder(base: &Path) -> bool {
    let mut command = process::program("sh");
    command.args([
        "-c",
        "grep -lF \"$1\" /proc/[0-9]*/mountinfo 2>/dev/null; true",
    ]);
    // Its last part alone: what is above may be another mount.
    command.arg("sh").arg(base.file_name().unwrap());
    !process::run(&mut command).unwrap().stdout.is_empty()
}

#[test]
#[ignore = "needs root"]
fn an_exported_image_is_set_up_from_its_archive_and_then_is_up_to_date() {
    let ready = &*READY;
    let hashed = digest::of_file(&ready.archive).unwrap().to_string();
    assert_eq!(hashed, ready.sha256);
    let base = tempfile::tempdir().unwrap();
    let state = base.path().join("state");
    let runsc = ready.runsc();
    let from = ["--from", arg(&ready.archive), "--sha256", &ready.sha256];
    let output = setup(&state, &[&from[..], &["--runsc", arg(&runsc)]].concat());
    assert!(output.status.success(), "{output:?}");
    let there = Images::at(&ready.state()).find("python").unwrap();
    let here = Images::at(&state).find("python").unwrap();
    assert_eq!(here.manifest, there.manifest);
    let mut names = names(&state);
    names.retain(|name| name.starts_with("downloads/"));
    assert_eq!(names, NOTHING);

    let before = listing(&state);
    for arguments in [&from[..], &[]] {
        let output = setup(&state, arguments);
        let printed = text(&output.stdout);
        assert_eq!(printed.matches("up to date").count(), 3, "{output:?}");
        assert_eq!(listing(&state), before);
    }
}

#[test]
#[ignore = "needs root"]
fn permissive_mode_needs_no_runsc_and_tries_its_runtime_out() {
    let base = tempfile::tempdir().unwrap();
    let (state, config) = (base.path().join("state"), base.path().join("config.yaml"));
    fs::write(
        &config,
        "security_mode: permissive\ncontainer_runtime: runc\n",
    )
    .unwrap();
    let config = ["--config", arg(&config)];
    let from = ["--from", arg(&READY.archive), "--sha256", &READY.sha256];
    let plan = setup(&state, &[&from[..], &config, &["--dry-run"]].concat());
    assert_eq!(
        text(&plan.stdout).lines().last(),
        Some("would try out `runc`")
    );
    let output = setup(&state, &[&from[..], &config].concat());
    assert!(output.status.success(), "{output:?}");
    let last = "[4/5] runc: fit (permissive mode: weaker than gVisor)";
    assert!(
        text(&output.stdout).lines().any(|line| line == last),
        "{output:?}"
    );
    assert!(!state.join("runsc").exists());
    let ran = tako(
        &state,
        &[&["run", "-c", "print(6 * 7)"], &config[..]].concat(),
    );
    assert_eq!(text(&ran.stdout), "42\n", "{ran:?}");
}

#[test]
#[ignore = "needs root"]
fn an_archive_with_another_digest_is_refused_with_both_and_nothing_is_left() {
    let base = tempfile::tempdir().unwrap();
    let state = base.path().join("state");
    let ready = &*READY;
    let wrong = Digest::of(b"another").to_string();
    let server = Server::start(&ready.archive, Server::WHOLE);
    for from in [arg(&ready.archive), &server.url] {
        let (error, _) = failure(&setup(&state, &["--from", from, "--sha256", &wrong]));
        assert!(error.contains(&ready.sha256), "{error}");
        assert!(error.contains(&wrong), "{error}");
        assert_eq!(names(&state), ["setup.lock"]);
    }
    let output = setup(&state, &["--from", arg(&ready.archive)]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
#[ignore = "needs root"]
fn a_download_that_breaks_is_continued_where_it_broke() {
    let ready = &*READY;
    let half = fs::metadata(&ready.archive).unwrap().len() / 2;
    let server = Server::start(&ready.archive, half);
    let base = tempfile::tempdir().unwrap();
    let state = base.path().join("state");
    set_up_from(&server, &state);
    Images::at(&state).find("python").unwrap();
    let requests = server.requests();
    let [first, second] = requests.as_slice() else {
        panic!("{requests:?}")
    };
    assert!(!first.contains("range:"), "{first}");
    let range = format!("range: bytes={half}-");
    assert!(second.contains(&range), "{second}");
    assert!(second.contains("if-range: \"the-archive\""), "{second}");
}

#[test]
#[ignore = "needs root"]
fn a_download_that_was_given_up_is_continued_by_the_next_setup() {
    let ready = &*READY;
    let bytes = fs::read(&ready.archive).unwrap();
    let half = bytes.len() / 2;
    let base = tempfile::tempdir().unwrap();
    let state = base.path().join("state");
    let partial = archive::download_path(&state, ready.sha256.parse().unwrap());
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(&partial, &bytes[..half]).unwrap();
    let server = Server::start(&ready.archive, Server::WHOLE);
    set_up_from(&server, &state);
    let requests = server.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    let range = format!("range: bytes={half}-");
    assert!(requests[0].contains(&range), "{requests:?}");
}

fn set_up_from(server: &Server, state: &Path) {
    let runsc = READY.runsc();
    let from = ["--from", &server.url, "--sha256", &READY.sha256];
    let output = setup(state, &[&from[..], &["--runsc", arg(&runsc)]].concat());
    assert!(output.status.success(), "{output:?}");
}

#[test]
#[ignore = "needs root"]
fn images_are_listed_shown_and_removed() {
    let (_base, state) = copy();
    let listed = text(&tako(&state, &["image", "ls"]).stdout);
    let row = listed.lines().nth(1).unwrap();
    assert!(row.starts_with("python "), "{listed}");
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_slice(&tako(&state, arguments).stdout).unwrap()
    };
    let shown = json(&["image", "show", "python"]);
    assert_eq!(json(&["image", "ls", "--json"])[0], shown);
    assert_eq!(shown["protocol"], tako_guest::PROTOCOL);

    let output = tako(&state, &["image", "rm", "python"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(names(&state.join("images")), NOTHING);
    let (error, _) = failure(&tako(&state, &["image", "rm", "python"]));
    assert!(
        error.contains("no executor image named `python`"),
        "{error}"
    );
    let (error, _) = failure(&tako(&state, &["image", "show", "../python"]));
    assert!(error.contains("is not the name of an image"), "{error}");
}

#[test]
#[ignore = "needs root"]
fn the_runsc_of_debian_12_is_refused_with_why_and_what_to_do() {
    let base = tempfile::tempdir().unwrap();
    let mut command = process::program("sh");
    command.args([
        "-ec",
        "apt-get -q -o APT::Sandbox::User=root download runsc/bookworm; dpkg-deb -x runsc_*.deb .",
    ]);
    process::run(command.current_dir(base.path())).unwrap();
    let old = base.path().join("usr/bin/runsc");

    let (_copy, state) = copy();
    let before = names(&state);
    let (error, hint) = failure(&setup(&state, &["--runsc", arg(&old)]));
    let expected = "(release 0.0~20221219.0) is too old: it lacks the systrap platform";
    assert!(error.contains(expected), "{error}");
    assert!(hint.contains("Debian 13"), "{hint}");
    assert!(hint.contains("--runsc"), "{hint}");
    assert_eq!(names(&state), before);
    provision::installed(&state).unwrap();
}

/// Serves one file over HTTP, breaks the first answer off, and understands `Range`.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Breaks nothing off.
    const WHOLE: u64 = u64::MAX;

    fn start(file: &Path, break_after: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/archive.tar", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, bytes) = (Arc::clone(&requests), fs::read(file).unwrap());
        std::thread::spawn(move || {
            let mut limit = usize::try_from(break_after).unwrap();
            for connection in listener.incoming().map(Result::unwrap) {
                let request = head(&connection);
                seen.lock().unwrap().push(request.clone());
                answer(connection, &request, &bytes, limit);
                limit = usize::MAX;
            }
        });
        Self { url, requests }
    }

    /// The heads of the requests so far, in lower case.
    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn head(connection: &TcpStream) -> String {
    let mut head = String::new();
    let mut reader = BufReader::new(connection.take(1 << 16));
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head}");
    }
    head.to_lowercase()
}

fn answer(mut connection: TcpStream, request: &str, bytes: &[u8], limit: usize) {
    let asked = request.split_once("\r\nrange: bytes=");
    let start: usize = asked
        .and_then(|(_, rest)| rest.split_once('-'))
        .map_or(0, |(start, _)| start.parse().unwrap());
    let size = bytes.len();
    let (status, range) = match start {
        0 => ("200 OK", String::new()),
        _ => (
            "206 Partial Content",
            format!("Content-Range: bytes {start}-{}/{size}\r\n", size - 1),
        ),
    };
    let body = &bytes[start..];
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{range}ETag: \"the-archive\"\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // The client may have hung up.
    connection.write_all(head.as_bytes()).ok();
    connection.write_all(&body[..body.len().min(limit)]).ok();
}
