//! Generic fronts over code that this crate compiles.
//!
//! A public function that is generic over the arithmetic would be compiled again in every crate that calls it, with all that it calls: the drivers, and
//! faer's GEMM and solvers under them. It is therefore a front that looks at the type and calls one of two functions that are compiled here, and
//! [`same`] tells the compiler that a type is what it is known to be.

use std::any::Any;

/// `x` as the type that it has.
///
/// # Panics
/// If `A` and `B` are not the same type.
pub(crate) fn same<A: 'static, B: 'static>(x: A) -> B {
    let mut x = Some(x);
    let x: &mut dyn Any = &mut x;
    x.downcast_mut::<Option<B>>().and_then(Option::take).expect("the type that was matched")
}

/// `x` as the type that it has.
///
/// # Panics
/// If `A` and `B` are not the same type.
pub(crate) fn same_ref<A: 'static, B: 'static>(x: &A) -> &B {
    let x: &dyn Any = x;
    x.downcast_ref().expect("the type that was matched")
}

/// `x` as the type that it has.
///
/// # Panics
/// If `A` and `B` are not the same type.
pub(crate) fn same_mut<A: 'static, B: 'static>(x: &mut A) -> &mut B {
    let x: &mut dyn Any = x;
    x.downcast_mut().expect("the type that was matched")
}
