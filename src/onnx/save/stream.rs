//! Lets prost encode straight into a file.
//!
//! prost writes to a [`BufMut`], which is made for memory. [`Stream`] is one in front of a writer: small pieces are
//! gathered in a buffer, large ones pass by it.

use bytes::buf::UninitSlice;
use bytes::{Buf, BufMut};
use std::io::{self, Write};

const BUFFER: usize = 64 * 1024;

/// A [`BufMut`] over a writer. The first error is kept, and reported by [`Stream::finish`]; what comes after it is
/// dropped.
pub(super) struct Stream<'a, W> {
    out: &'a mut W,
    /// Never full after a call: there is always room to go on.
    buffer: Vec<u8>,
    written: u64,
    error: Option<io::Error>,
}

impl<'a, W: Write> Stream<'a, W> {
    pub(super) fn new(out: &'a mut W) -> Self {
        Self {
            out,
            buffer: Vec::with_capacity(BUFFER),
            written: 0,
            error: None,
        }
    }

    /// Writes what is left in the buffer. Returns the number of bytes written in all.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.empty_buffer();
        match self.error {
            Some(error) => Err(error),
            None => {
                self.out.flush()?;
                Ok(self.written)
            }
        }
    }

    fn empty_buffer(&mut self) {
        if self.error.is_none() {
            self.error = self.out.write_all(&self.buffer).err();
            self.written += self.buffer.len() as u64;
        }
        self.buffer.clear();
    }
}

// SAFETY: `chunk_mut` gives the spare room of a vector, which is never empty because `advance_mut` and `put_slice` empty
// a full buffer, and `advance_mut` claims no more of it than the caller says to have filled.
unsafe impl<W: Write> BufMut for Stream<'_, W> {
    fn remaining_mut(&self) -> usize {
        // As for a vector: a file has no end known beforehand.
        usize::MAX - self.buffer.len()
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        // SAFETY: the caller has filled `count` bytes of `chunk_mut`, by the contract of this function.
        unsafe { self.buffer.advance_mut(count) };
        if self.buffer.len() == self.buffer.capacity() {
            self.empty_buffer();
        }
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        self.buffer.chunk_mut()
    }

    fn put_slice(&mut self, data: &[u8]) {
        // With a full buffer counted as too small, it is not full afterwards.
        if data.len() >= self.buffer.capacity() - self.buffer.len() {
            self.empty_buffer();
        }
        if data.len() < self.buffer.capacity() {
            self.buffer.extend_from_slice(data);
        } else if self.error.is_none() {
            self.error = self.out.write_all(data).err();
            self.written += data.len() as u64;
        }
    }

    fn put<T: Buf>(&mut self, mut data: T)
    where
        Self: Sized,
    {
        while data.has_remaining() {
            let chunk = data.chunk();
            let len = chunk.len();
            self.put_slice(chunk);
            data.advance(len);
        }
    }
}
