//! What no input of the model reaches: runtimes compute it once, so its Linears stay in float.

use crate::recognise::text;
use onnx_osplus::graph::View;

#[test]
fn what_depends_on_no_input() {
    let model = text::model(
        "in x[b, 8]
         const table[4, 8]
         const w[8, 8]
         const v[8, 8]
         ints one = [1]
         node c[8] = 2
         t = Mul(table, c)
         r = Relu(t)
         keys = MatMul(r, w)
         noise = RandomUniformLike(r)
         noisy = Add(r, noise)
         s = Shape(x)
         q = MatMul(x, v)
         kt = Transpose{perm = [1, 0]}(keys)
         y = MatMul(q, kt)
         out y",
    );
    let view = View::new(&model);
    let fixed = view.fixed_values();
    let mut names: Vec<&str> = fixed.iter().map(|v| view.name(*v)).collect();
    names.sort_unstable();
    assert_eq!(names, ["c", "keys", "kt", "r", "t"]);
}
