# Chores, a line each; `just` lists them.
_:
    @just --list

# Everything that a change has to pass
ci:
    bash .ci/run

# The tests, as the README gives them
test:
    cargo test --workspace --locked

# The tests that need the models: `just models` first
test-models:
    cargo test --workspace --locked --lib --bins --tests -- --ignored --skip write_the_golden_file --skip few_sounds_differ --skip a_person_talks_in_a_browser --skip a_browsers_own_opus --skip client_talks --skip libopus_and_we

# The same tests in parallel processes, for those who have nextest
nextest:
    cargo nextest run --workspace --locked

# Format
fmt:
    cargo fmt --all

# Lints, warnings denied
lint:
    cargo lint

# The API's documents
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Sessions broken on purpose, from that many seeds; RSPP_FROM says from which on
simulate SEEDS="10000":
    RSPP_SEEDS={{SEEDS}} cargo test --locked -p rspp-tests --test simulation hold -- --nocapture

# One of them, line by line
seed SEED:
    RSPP_SEED={{SEED}} cargo test --locked -p rspp-tests --test simulation one_seed -- --nocapture

# The wake protocol of the mailbox, model-checked
loom:
    RUSTFLAGS="--cfg loom" cargo test -p rspp-actors --lib --target-dir target/loom

# Messages, hops and bytes per actor
bench:
    cargo bench -p rspp-actors

# Look for bytes that crash a parser, coverage-guided: needs cargo-fuzz
fuzz TARGET *ARGS:
    cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none {{TARGET}} {{ARGS}}

# The schemas of specs and events, written anew
schemas:
    UPDATE_SCHEMAS=1 cargo test -p rspp-proto --test schema

# Licences, advisories, sources
deny:
    cargo deny --config .cargo/deny.toml check

# Spelling
typos:
    typos --config .typos.toml

# Fetch the models
models:
    cargo run --release --locked -p rspp -- models pull

# A conversation with the agent, offline
talk *ARGS:
    cargo run --release --locked -p rspp -- loopback {{ARGS}}
