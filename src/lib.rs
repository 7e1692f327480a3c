#![allow(missing_docs)]
pub fn hello() -> &'static str {
    "x"
}
pub mod cgroup;
