//! Session and turn decisions as plain values, free of clocks, tasks and I/O.
