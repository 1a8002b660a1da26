//! Sinks by commutation: what each rule reaches, and that the migrated graph computes the same from x' = (x − z) / s.

mod contrib;
mod prove;
mod rotated;
mod shared;
mod sinks;
mod stories;
mod walls;
