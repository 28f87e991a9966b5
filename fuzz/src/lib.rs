//! What each fuzz target does with an input, and what must hold whatever the input is.
//!
//! The first byte of an input chooses the way it takes. Where a signature stands in the way, the target signs what the input
//! asks for with a key of its own, so that what lies behind is reached too.

pub mod certificate;
pub mod jwt;
pub mod token;
