//! The privileged service: it keeps single-use sandboxes ready and runs a job in one, for whoever may
//! use its socket.

pub mod connection;
pub mod pool;
pub mod wire;
