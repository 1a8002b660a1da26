//! A decoded image.

/// Colours of 8 bits, row by row: `height` × `width` × 3.
pub(super) struct Pixels {
    pub width: usize,
    pub height: usize,
    pub data: Vec<u8>,
}
