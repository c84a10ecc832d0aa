//! Generated code is committed, so that a build needs no protoc; here it is made anew and compared.
//! `UPDATE_GENERATED=1 cargo test -p rspp-controlplane-api --test generated` writes it.

use std::{fs, path::Path};

use prost::Message as _;

/// Issue 4: what is committed is what the protos say.
#[test]
fn the_generated_code_is_what_the_protos_say() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protos = crate_dir.join("../../proto/protos");
    let mut files: Vec<_> = fs::read_dir(protos.join("rspp/v1"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| format!("rspp/v1/{name}"))
        .collect();
    files.sort();
    let descriptors = protox::compile(files, [protos]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .out_dir(out.path())
        .btree_map(".")
        .bytes(".")
        // They hold what nobody may print.
        .skip_debug(["rspp.v1.SessionToken", "rspp.v1.Lease", "rspp.v1.Proof"])
        .compile_fds(descriptors.clone())
        .unwrap();
    let code = fs::read(out.path().join("rspp.v1.rs")).unwrap();
    let committed = crate_dir.join("src/gen");
    for (name, now) in [
        ("rspp.v1.rs", code),
        ("rspp.v1.binpb", descriptors.encode_to_vec()),
    ] {
        let path = committed.join(name);
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            fs::write(&path, &now).unwrap();
        }
        let kept = fs::read(&path).unwrap_or_default();
        assert!(kept == now, "{name} is old: run with UPDATE_GENERATED=1");
    }
}
