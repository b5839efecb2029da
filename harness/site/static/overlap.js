// Plots segmentation losses against the overlap, by the formulas of twinloss.reference. An object has `size` of N voxels.
// Its voxels have the probability p, and all other voxels have the probability q.
(function () {
  "use strict";
  const N = 4096;
  const POINTS = Array.from({ length: 199 }, (_, k) => (k + 1) / 200);

  // Each function returns the loss, and its derivative with respect to the logit of an object voxel times the number of
  // these voxels; ν = δ = smooth.
  const slope = (p, byP, size) => size * byP * p * (1 - p);

  function sums({ q, size }, p) {
    return { tp: p * size, fp: q * (N - size), fn: (1 - p) * size, predicted: p * size + q * (N - size) };
  }

  function dice(o, p) {
    const n = 2 * sums(o, p).tp + o.smooth, m = sums(o, p).predicted + o.size + o.smooth;
    return [1 - n / m, slope(p, (n / m - 2) / m, o.size)];
  }

  function jaccard(o, p) {
    const { tp, predicted } = sums(o, p);
    const n = 2 * tp + o.smooth, m = 2 * (predicted + o.size - tp) + o.smooth;
    return [1 - n / m, slope(p, -2 / m, o.size)];
  }

  function tversky(o, p) {
    const { tp, fp, fn } = sums(o, p);
    const n = tp + o.smooth, m = tp + o.alpha * fp + o.beta * fn + o.smooth;
    return [1 - n / m, slope(p, (n / m * (1 - o.beta) - 1) / m, o.size)];
  }

  function generalized(o, p) {
    const rest = N - o.size, w1 = 1 / o.size ** 2, w0 = 1 / rest ** 2;
    const { tp, predicted } = sums(o, p);
    const n = 2 * (w1 * tp + w0 * (1 - o.q) * rest) + o.smooth;
    const m = w1 * (predicted + o.size) + w0 * (N - predicted + rest) + o.smooth;
    return [1 - n / m, slope(p, (w1 * (n / m - 2) - w0 * n / m) / m, o.size)];
  }

  function focalWith(o, p, gamma, positive, negative) {
    const foreground = -positive * (1 - p) ** gamma * Math.log(p);
    const background = -negative * o.q ** gamma * Math.log1p(-o.q);
    const byLogP = -positive * (1 - p) ** gamma * (1 - gamma * p * Math.log(p) / (1 - p));
    return [(o.size * foreground + (N - o.size) * background) / N, o.size * byLogP * (1 - p) / N];
  }

  const focal = (o, p) => focalWith(o, p, o.gamma, o.focalAlpha, 1 - o.focalAlpha);
  const entropy = (o, p) => focalWith(o, p, 0, 1, 1);
  const sum = (one, other) => (o, p) => one(o, p).map((value, k) => value + other(o, p)[k]);

  const CURVES = [
    { name: "dice", title: "Dice", style: "c1", of: dice },
    { name: "jaccard", title: "Jaccard", style: "c2", of: jaccard },
    { name: "tversky", title: "Tversky", style: "c3", of: tversky },
    { name: "generalized_dice", title: "generalised Dice", style: "c4", of: generalized },
    { name: "focal", title: "focal", style: "c5", of: focal },
    { name: "cross_entropy", title: "cross entropy", style: "c6", of: entropy },
    { name: "dice_ce", title: "Dice + cross entropy", style: "c7", of: sum(dice, entropy) },
    { name: "dice_focal", title: "Dice + focal", style: "c8", of: sum(dice, focal) },
  ];

  const figure = document.getElementById("overlap");
  if (!figure) return;
  const shown = new Set(figure.dataset.curves.split(" "));

  function draw(o) {
    const curves = CURVES.filter((curve) => shown.has(curve.name));
    for (const [k, part] of ["loss", "gradient"].entries()) {
      window.twinloss.plot(figure.querySelector(`[data-plot=${part}]`), {
        curves: curves.map(({ name, style, of }) => ({ name, style, x: POINTS, y: POINTS.map((p) => of(o, p)[k]) })),
        mark: o.p,
        label: "overlap p",
        title: part,
      });
    }
    window.twinloss.readout(figure, curves.map(({ title, of }) => [title, ...of(o, o.p)]));
  }

  const update = window.twinloss.sliders(figure, draw);
  window.twinloss.legend(figure, CURVES, shown, update);
})();
