//! The recognisers on every form that exporters write: what matches, that folding into it is exact, what does not match
//! and why.

mod attention;
mod contrib;
mod form;
mod linear;
mod near_miss;
mod norm;
mod site;
pub mod text;
mod transparent;
