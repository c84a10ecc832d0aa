//! Parsers of foreign bytes on the fuzzer's corpus, and on what small damages make of it.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by its panic"
)]

use std::{fs, panic, path::Path};

use rspp_tests::fuzz::{TARGETS, Target, damaged};

/// Damages tried of each file of the corpus.
const DAMAGES: u64 = 400;

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target.name);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            (name.into_owned(), fs::read(&path).unwrap())
        })
        .collect()
}

/// NF-013: bytes from elsewhere are read or refused, and never a crash.
#[test]
fn foreign_bytes_are_read_or_refused() {
    for target in TARGETS {
        let files = corpus(target);
        assert!(files.len() > 1, "{} has no corpus", target.name);
        for (name, bytes) in files {
            (target.run)(&bytes);
            for seed in 0..DAMAGES {
                let damaged = damaged(&bytes, seed);
                let outcome = panic::catch_unwind(|| (target.run)(&damaged));
                assert!(
                    outcome.is_ok(),
                    "{}: {name} with damage {seed} is a crash",
                    target.name
                );
            }
        }
    }
}

/// Each corpus holds something that is good, so that damages start close to it.
#[test]
fn each_corpus_holds_something_good() {
    use rspp_proto::{abi::*, spec::*};
    for target in TARGETS {
        let good = corpus(target).iter().any(|(_, bytes)| {
            let text = || std::str::from_utf8(bytes).unwrap_or_default();
            match target.name {
                "abi_msgpack" => Wire::new(Encoding::MessagePack).decode(bytes).is_ok(),
                "abi_json" => Wire::new(Encoding::Json).decode(bytes).is_ok(),
                "pipeline_spec" => PipelineSpec::parse("it", text(), Mode::Strict).is_ok(),
                "policy_bundle" => PolicyBundle::parse("it", text(), Mode::Strict).is_ok(),
                "timeline_file" => {
                    rspp_timeline::Timeline::read(std::io::Cursor::new(bytes)).is_ok()
                }
                "wav_file" => {
                    rspp_transport_api::wav::decode_from(Path::new("it"), &bytes[..]).is_ok()
                }
                other => panic!("{other} has no way to be good"),
            }
        });
        assert!(good, "nothing good in the corpus of {}", target.name);
    }
}
