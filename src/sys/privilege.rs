//! Privileges.
