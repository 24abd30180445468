pub mod stream {
    pub const RANGE: u64 = 1;
    pub const PROBE: u64 = 2;
}
