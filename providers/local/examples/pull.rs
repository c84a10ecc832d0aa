//! Pulls models into the store, without the rest of the program:
//! `cargo run -p rspp-local --example pull [MODEL...]`.

use std::{env, error::Error};

use rspp_local::models::{ModelId, Store};

fn main() -> Result<(), Box<dyn Error>> {
    let mut ids = env::args()
        .skip(1)
        .map(|name| name.parse())
        .collect::<Result<Vec<ModelId>, _>>()?;
    if ids.is_empty() {
        ids = ModelId::ALL.into();
    }
    let store = Store::open(None)?;
    let mut last = None;
    store.pull(&ids, &mut |progress| {
        if last.replace(progress) != Some(progress) {
            println!("{progress:?}");
        }
    })?;
    for id in ids {
        println!("{id}: {} bytes, verified", store.verify(id)?);
    }
    Ok(())
}
