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
#[path = "../fuzz/properties/wire.rs"]
mod wire;

use proptest::prelude::*;
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use tako_guest::{Buffer, ToGuest, ToHost};

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

/// The name of a variant.
fn kind(message: &impl std::fmt::Debug) -> String {
    let text = format!("{message:?}");
    let is_name = |letter: &char| letter.is_ascii_alphanumeric();
    text.chars().take_while(is_name).collect()
}

#[test]
fn every_message_of_the_guest_protocol_is_in_the_corpus() {
    let (mut to_guest, mut to_host) = (HashSet::new(), HashSet::new());
    for entry in fs::read_dir(corpus().join("frame")).unwrap() {
        let input = fs::read(entry.unwrap().path()).unwrap();
        let wire = input.get(1..).unwrap_or_default();
        let mut buffer = Buffer::new();
        buffer.extend(wire);
        while let Ok(Some(message)) = buffer.next::<ToGuest>() {
            to_guest.insert(kind(&message));
        }
        let mut buffer = Buffer::new();
        buffer.extend(wire);
        while let Ok(Some(message)) = buffer.next::<ToHost>() {
            to_host.insert(kind(&message));
        }
    }
    assert_eq!((to_guest.len(), to_host.len()), (7, 13));
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
fn the_protocol_of_the_socket_withstands_its_corpus() {
    replay("wire", wire::check);
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
    assert_eq!(targets, ["frame", "image", "result", "spec", "wire"]);
    assert!(bytes <= MAX_BYTES, "{bytes} bytes");
}

/// Any bytes, and an input of the corpus with some of its bytes changed.
fn inputs(target: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let kept: Vec<_> = fs::read_dir(corpus().join(target))
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .filter(|input| !input.is_empty())
        .collect();
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8);
    let mutated = (prop::sample::select(kept), changes).prop_map(|(mut input, changes)| {
        for (at, byte) in changes {
            let at = at.index(input.len());
            input[at] = byte;
        }
        input
    });
    prop_oneof![1 => prop::collection::vec(any::<u8>(), 0..2048), 3 => mutated]
}

proptest! {
    #[test]
    fn the_frame_decoder_withstands_any_bytes(input in inputs("frame")) {
        frame::check(&input);
    }

    #[test]
    fn the_specification_withstands_any_request(input in inputs("spec")) {
        spec::check(&input);
    }

    #[test]
    fn the_result_parser_withstands_any_bytes(input in inputs("result")) {
        result::check(&input);
    }

    #[test]
    fn the_protocol_of_the_socket_withstands_any_bytes(input in inputs("wire")) {
        wire::check(&input);
    }

    #[test]
    fn the_image_parsers_withstand_any_bytes(input in inputs("image")) {
        image::check(&input);
    }
}
