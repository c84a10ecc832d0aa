//! The committed client of etcd is what its description says.
//!
//! `UPDATE_GENERATED=1 cargo test -p rspp-controlplane-storage --test generated` writes it anew.

use std::{fs, path::Path};

#[test]
fn the_client_of_etcd_is_generated_from_its_description() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = here.join("src/etcd/generated.rs");
    let dir = tempfile::tempdir().unwrap();
    let described = protox::compile(["etcd.proto"], [here.join("protos")]).unwrap();
    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".")
        // They hold what nobody may print.
        .skip_debug([
            "etcdserverpb.AuthenticateRequest",
            "etcdserverpb.AuthenticateResponse",
        ])
        .out_dir(dir.path())
        .compile_fds(described)
        .unwrap();
    let generated = fs::read_to_string(dir.path().join("etcdserverpb.rs")).unwrap();
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(&committed, &generated).unwrap();
    }
    let found = fs::read_to_string(&committed).unwrap_or_default();
    assert!(
        found == generated,
        "protos/etcd.proto and src/etcd/generated.rs differ; run with UPDATE_GENERATED=1"
    );
}
