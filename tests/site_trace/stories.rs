//! Snapshots before and after, and random sizes.

use super::prove::*;
use super::sinks::gelu;

/// The text before and after, with every element; constants are round, so that it can be checked by eye.
fn story(build: impl FnOnce(&mut Builder)) -> String {
    let mut state = 0;
    let mut next = || {
        state = (state + 5) % 13;
        (state as f32 - 6.0) / 4.0
    };
    let mut builder = Builder::new(
        Size {
            c: 4,
            n: 4,
            rank: 3,
        },
        &mut next,
    );
    builder.input("x");
    build(&mut builder);
    let model = builder.model();
    let view = View::new(&model);
    let found = recognise(&view);
    let wanted = wanted_shapes(&view, &found);
    let shapes = shapes(&TractEngine, &model, &batch(&[2, 3, 4], 1), &wanted).unwrap();
    let sites = find_sites(&view, &found, &shapes, true);
    let affine = |site: &Site| Affine {
        shift: site.allow_shift.then(|| vec![1.0, 0.0, -2.0, 0.5]),
        scale: Some(vec![2.0, 1.0, 0.5, 4.0]),
        ..Affine::default()
    };
    // The graph input is left as it is.
    let migrations: Vec<_> = sites
        .iter()
        .filter(|s| view.name(s.value) != "x")
        .map(|s| (s, affine(s)))
        .collect();
    let patches = migrate(&view, &found, &migrations, &mut Names::new(&model)).unwrap();
    let mut migrated = model.clone();
    graph::apply(&mut migrated, patches).unwrap();
    let sites: Vec<_> = sites.iter().map(|s| describe(&view, &found, s)).collect();
    format!(
        "# before\n{}\n# sites\n{}\n\n# migrated\n{}",
        text(&model, TextOptions::FULL),
        sites.join("\n"),
        text(&migrated, TextOptions::FULL)
    )
}

#[test]
fn snapshots() {
    let attention = story(|b| attention(b, "x", (2, 2), true));
    insta::assert_snapshot!("attention", attention);
    insta::assert_snapshot!("gelu", story(|b| gelu(b, false)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_size_of_block(
        (kv, repeat, d) in (1..4_usize, 1..4_usize, 1..5_usize),
        (rows, tokens, c) in (1..4_usize, 1..5_usize, 2..9_usize),
        (seed, bias) in any::<(u64, bool)>(),
    ) {
        let prove = |build: &dyn Fn(&mut Builder)| {
            let model = graph(3, c, seed, build);
            // The sites are found by one row of one token, and hold for any number.
            let first = batch(&[1, 1, c], seed);
            prove_beyond(&model, &first, batch(&[rows, tokens, c], seed), true)
        };
        let n = kv * repeat * d;
        let heads = prove(&|b| {
            b.layer_norm("x", "norm");
            attention(b, "norm", (kv * repeat, d), bias);
        });
        let value = if bias { "/value.product" } else { "/value" };
        let expected = format!("<- {value}/MatMul z, s");
        prop_assert!(heads.site("y").contains(&expected), "{:?}", heads.sites);
        let grouped = prove(&|b| grouped_attention(b, kv, repeat, d));
        let free = grouped.site("y").contains("<- /value.product/MatMul z, s");
        prop_assert_eq!(free, kv * d > 1 || repeat == 1, "{:?}", grouped.sites);
        let gated = prove(&|b| gated(b, n, seed % 2 == 0));
        prop_assert!(gated.site("y").contains("<- /up.product/MatMul s"), "{:?}", gated.sites);
    }
}
