fn main() {
    println!("{}", beta9_shim::hello());
}
