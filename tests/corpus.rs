//! Replays the corpus of the fuzz targets: what fuzzing has found once is looked at in every test
//! run, without libFuzzer.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says on which input"
)]

#[path = "../fuzz/properties/frame.rs"]
mod frame;
#[path = "../fuzz/properties/image.rs"]
mod image;
#[path = "../fuzz/properties/result.rs"]
mod result;
#[path = "../fuzz/properties/spec.rs"]
mod spec;

use std::fs;
use std::path::Path;

/// Enough to reach every branch that fuzzing has reached, and no burden to a clone.
const MAX_BYTES: u64 = 500_000;

fn corpus() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// Checks every input that is kept for a target.
fn replay(target: &str, check: fn(&[u8])) {
    let mut inputs = 0;
    for entry in fs::read_dir(corpus().join(target)).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        check(&fs::read(path).unwrap());
        inputs += 1;
    }
    assert!(inputs >= 10, "{inputs} inputs");
}

#[test]
fn the_frame_decoder_withstands_its_corpus() {
    replay("frame", frame::check);
}

#[test]
fn the_specification_withstands_its_corpus() {
    replay("spec", spec::check);
}

#[test]
fn the_result_parser_withstands_its_corpus() {
    replay("result", result::check);
}

#[test]
fn the_image_parsers_withstand_their_corpus() {
    replay("image", image::check);
}

#[test]
fn the_corpus_is_small_and_every_target_has_one() {
    let mut bytes = 0;
    let mut targets = Vec::new();
    for target in fs::read_dir(corpus()).unwrap() {
        let target = target.unwrap();
        targets.push(target.file_name().into_string().unwrap());
        for input in fs::read_dir(target.path()).unwrap() {
            bytes += input.unwrap().metadata().unwrap().len();
        }
    }
    targets.sort();
    assert_eq!(targets, ["frame", "image", "result", "spec"]);
    assert!(bytes <= MAX_BYTES, "{bytes} bytes");
}
