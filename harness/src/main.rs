//! The `wopr` command.

fn main() {}
