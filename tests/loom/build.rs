//! Builds the file under test with loom's atomics. A bare `loom` would reach other crates, and so would a flag for all.

fn main() {
    println!("cargo::rustc-cfg=mesh_loom");
    println!("cargo::rerun-if-changed=build.rs");
}
