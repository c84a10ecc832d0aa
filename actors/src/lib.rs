//! Supervised actors with three bounded priority lanes, on ractor.
