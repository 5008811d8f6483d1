//! The `tako-vm` command.
fn main() {}
