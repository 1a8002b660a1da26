//! What happens to the value of one site.

use crate::solve::{Mixing, Rotation};

/// A rotation, and what must be known to write it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotated {
    /// R.
    pub rotation: Rotation,
    /// The number of axes of x.
    pub rank: usize,
}

impl Rotated {
    /// Whether R folds where the scale does.
    pub(super) fn folds(&self) -> bool {
        self.rotation.mixing() == Mixing::Heads
    }
}

/// The transform x' = ((x − z) / s) R of one site; a missing part is the identity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Affine {
    /// `z: [C]`.
    pub shift: Option<Vec<f32>>,
    /// `s: [C]`, every element > 0.
    pub scale: Option<Vec<f32>>,
    /// R. Its signs must be foldable ([`crate::site::Site::allow_signs`]), or all be 1.
    pub rotation: Option<Rotated>,
}

impl Affine {
    /// Whether this changes nothing.
    pub fn is_identity(&self) -> bool {
        self.shift.is_none() && self.scale.is_none() && self.rotation.is_none()
    }

    /// What is folded: the signs of the rotation with the scale, and no rotation.
    pub(super) fn folded(&self) -> Affine {
        let signs = self.rotation.as_ref().map(|r| r.rotation.signs());
        let signs = signs.filter(|signs| signs.contains(&-1.0));
        let scale = match (self.scale.clone(), signs) {
            (Some(s), Some(d)) => Some(s.iter().zip(&d).map(|(s, d)| s * d).collect()),
            (s, d) => s.or(d),
        };
        Affine {
            shift: self.shift.clone(),
            scale,
            rotation: None,
        }
    }

    /// The same for a value whose place i has channel `order[i]`.
    pub(super) fn reordered(&self, order: &[u32]) -> Affine {
        let pick = |v: &Option<Vec<f32>>| {
            let v = v.as_ref()?;
            Some(order.iter().map(|&c| v[c as usize]).collect())
        };
        Affine {
            shift: pick(&self.shift),
            scale: pick(&self.scale),
            rotation: self.rotation.clone(),
        }
    }

    /// z of one channel; 0 for none.
    pub(super) fn z(&self, channel: Option<u32>) -> f32 {
        let z = self.shift.as_ref().zip(channel);
        z.map_or(0.0, |(z, c)| z[c as usize])
    }

    /// s of one channel; 1 for none.
    pub(super) fn s(&self, channel: Option<u32>) -> f32 {
        let s = self.scale.as_ref().zip(channel);
        s.map_or(1.0, |(s, c)| s[c as usize])
    }

    pub(super) fn parts(&self) -> &'static str {
        match (&self.shift, &self.scale) {
            (Some(_), Some(_)) => "shift and scale",
            (Some(_), None) => "shift",
            (None, Some(_)) => "scale",
            (None, None) => "rotation",
        }
    }
}
