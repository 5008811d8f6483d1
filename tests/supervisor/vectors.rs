//! The test vectors of the protocol, which its other implementations are held against too:
//! `docs/supervisor-protocol.md` says how to read them.

use serde_json::{Map, Value};
use tako_vm::supervisor::wire::{self, Message, PROTOCOL, ToClient, ToSupervisor, WireError};

fn vectors(kind: &str) -> Vec<Map<String, Value>> {
    let all: Value = serde_json::from_str(include_str!("vectors.json")).unwrap();
    assert_eq!(all["protocol"], PROTOCOL);
    let vectors = all[kind].as_array().unwrap().iter();
    vectors
        .map(|vector| vector.as_object().unwrap().clone())
        .collect()
}

fn text<'a>(vector: &'a Map<String, Value>, key: &str) -> &'a str {
    vector[key].as_str().unwrap()
}

fn bytes(vector: &Map<String, Value>, key: &str) -> Vec<u8> {
    let text = vector.get(key).map_or("", |value| value.as_str().unwrap());
    hex::decode(text).unwrap()
}

async fn decode<M: Message>(frame: &[u8]) -> Result<(M, Vec<u8>), WireError> {
    let mut rest = frame;
    let message = wire::read::<M>(&mut rest).await?.expect("a message");
    assert!(rest.is_empty());
    let again = message.to_frame();
    Ok((message, again))
}

/// The frame of a vector, decoded and encoded again.
async fn again<M: Message + PartialEq + std::fmt::Debug>(frame: &[u8]) -> Vec<u8> {
    let (message, again) = decode::<M>(frame).await.unwrap();
    assert_eq!(decode::<M>(&again).await.unwrap().0, message);
    again
}

#[tokio::test]
async fn every_valid_frame_is_understood_and_nothing_of_it_is_lost() {
    for vector in vectors("valid") {
        let name = text(&vector, "name");
        let frame = bytes(&vector, "frame");
        let again = match text(&vector, "sender") {
            "client" => again::<ToSupervisor>(&frame).await,
            _ => again::<ToClient>(&frame).await,
        };
        assert_eq!(frame[..1], *text(&vector, "kind").as_bytes(), "{name}");
        let Some(json) = vector.get("json") else {
            assert_eq!(again, frame, "{name}");
            assert_eq!(frame[5..], bytes(&vector, "bytes"), "{name}");
            continue;
        };
        assert_eq!(
            serde_json::from_slice::<Value>(&frame[5..]).unwrap(),
            *json,
            "{name}"
        );
        let encoded: Value = serde_json::from_slice(&again[5..]).unwrap();
        for (key, value) in json.as_object().unwrap() {
            // What only a later version has is passed over.
            assert!(encoded[key] == *value || key == "later", "{name}: {key}");
        }
    }
}

#[tokio::test]
async fn every_invalid_frame_is_refused_for_its_reason() {
    for vector in vectors("invalid") {
        let name = text(&vector, "name");
        let frame = bytes(&vector, "frame");
        let error = match text(&vector, "sender") {
            "client" => decode::<ToSupervisor>(&frame).await.unwrap_err(),
            _ => decode::<ToClient>(&frame).await.unwrap_err(),
        };
        let found = match error {
            WireError::Kind { .. } => "kind",
            WireError::TooLong { .. } => "length",
            WireError::Body { .. } => "body",
            WireError::Cut => "cut",
            WireError::Read { source } => panic!("{name}: {source}"),
        };
        assert_eq!(found, text(&vector, "error"), "{name}");
    }
}

#[test]
fn every_kind_of_either_side_has_a_vector() {
    let kinds = |sender: &str| {
        let mut kinds: Vec<_> = vectors("valid")
            .iter()
            .filter(|vector| text(vector, "sender") == sender)
            .map(|vector| text(vector, "kind").as_bytes()[0])
            .collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    };
    let known = |longest: fn(u8) -> Option<usize>| -> Vec<u8> {
        (0..=255).filter(|kind| longest(*kind).is_some()).collect()
    };
    assert_eq!(kinds("client"), known(ToSupervisor::longest));
    assert_eq!(kinds("supervisor"), known(ToClient::longest));
}
