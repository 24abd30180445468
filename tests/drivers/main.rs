//! All that runs whole factorizations, a file for each subject. One binary, since the drivers are generic: each of these
//! files on its own would compile them anew, for half a minute and more.
#![cfg(feature = "linalg")]

#[path = "../common/mod.rs"]
mod common;

mod batch;
mod budget;
mod determinism;
mod difference;
mod factors;
mod fuzz;
mod hostile;
mod lowrank;
mod methods;
mod operator;
mod out_of_core;
mod parts;
mod real_inputs;
mod shared;
mod strides;
mod svd;
mod tolerance;
mod two_sided;
mod whiten;
