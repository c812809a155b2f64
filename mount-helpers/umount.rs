//! Placeholder entry point until the verbs land.
fn main() {}
