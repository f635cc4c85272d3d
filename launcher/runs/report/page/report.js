"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.querySelector(".controls");
  if (!form) return;
  const single = data.runs.length === 1;
  const splits = ["train", "validation", "test"];
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const shown = (run) => {
    const box = document.querySelector(`[data-run="${run}"]`);
    return !box || box.checked;
  };

  // ---- numbers
  const digits = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return Number(value.toPrecision(5)).toExponential().replace("e+", "e");
    return Number(value.toPrecision(5)).toLocaleString("en", { maximumFractionDigits: 12 });
  };
  const clock = (seconds) => {
    if (seconds === null || seconds === undefined) return "–";
    const whole = Math.round(seconds), pad = (n) => String(n).padStart(2, "0");
    const days = Math.floor(whole / 86400), hours = Math.floor(whole / 3600) % 24, minutes = Math.floor(whole / 60) % 60;
    if (days) return `${days} d ${hours}:${pad(minutes)}`;
    return hours ? `${hours}:${pad(minutes)}:${pad(whole % 60)}` : `${minutes}:${pad(whole % 60)}`;
  };
  const clockTicks = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400,
    172800, 432000, 864000, 1728000, 4320000];

  // ---- what is drawn
  const smoothed = (values, weight) => {
    if (!weight) return values;
    let mean = 0, total = 0;  // an exponential mean that does not begin at zero
    return values.map((value) => {
      if (value === null) return null;
      mean = mean * weight + value * (1 - weight);
      total = total * weight + 1 - weight;
      return mean / total;
    });
  };
  const places = (series, x) => {
    if (x === "seconds") return series.seconds;
    const perEpoch = data.runs[series.run].stepsPerEpoch;
    return x === "epoch" && perEpoch ? series.steps.map((step) => step / perEpoch) : series.steps;
  };
  const table = (xs, ys) => {
    const kept = xs.map((x, i) => [x, ys[i]]).filter(([x]) => x !== null).sort((a, b) => a[0] - b[0]);
    return [kept.map(([x]) => x), kept.map(([, y]) => y)];
  };
  const style = (series) => {
    const order = splits.indexOf(series.split);
    const name = single ? `--c${Math.max(0, order)}` : `--c${series.run % 8}`;
    const faint = !single && series.split === "train";
    return {
      stroke: () => color(name) + (faint ? "90" : ""),
      width: series.split === "train" ? 1.25 : 2,
      dash: series.run >= 8 ? [6, 4] : undefined,
      points: { size: series.split === "test" ? 9 : 5, fill: () => color(name), show: series.steps.length < 2 || undefined },
    };
  };
  const label = (series, all) => {
    if (single) return series.label;
    const alike = all.every((other) => other.label === series.label);
    return data.runs[series.run].label + (alike ? "" : ` · ${series.label}`);
  };

  const isNegative = (series) => series.some((one) => one.values.some((value) => value < 0));

  const paper = document.documentElement.classList;  // has `paper` while the page is printed
  const room = (place) => (paper.contains("paper") ? { width: 225, height: 135 } : { width: place.clientWidth, height: 260 });

  const options = (series, x, log, size) => {
    const text = () => color("--dim"), grid = { stroke: () => color("--grid"), width: 1 };
    const axis = { stroke: text, grid, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    return {
      ...size,
      scales: { x: { time: false }, y: log ? { distr: 3 } : {} },
      cursor: { sync: { key: "report" }, drag: { x: true, y: false }, points: { size: 6 } },
      legend: { live: true },
      axes: [
        { ...axis, size: 32, gap: 8, incrs: x === "seconds" ? clockTicks : undefined,
          values: (_, ticks) => ticks.map((tick) => (x === "seconds" ? clock(tick) : digits(tick))) },
        { ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : digits(tick))) },
      ],
      series: [
        { label: { steps: "step", epoch: "epoch", seconds: "time" }[x],
          value: (_, value) => (x === "seconds" ? clock(value) : digits(value)) },
        ...series.map((one) => ({ label: label(one, series), value: (_, value) => digits(value), spanGaps: false, ...style(one) })),
      ],
    };
  };

  // of several runs each has one entry of the legend: its validation, where there is one
  const listRunsOnce = (plot, series) => {
    const rows = [...plot.root.querySelectorAll(".u-legend tr")].slice(1);
    const rank = (one) => ["validation", "test", "train"].indexOf(one.split);
    series.forEach((one, i) => {
      const better = (other, j) => other.run === one.run && (rank(other) < rank(one) || (rank(other) === rank(one) && j < i));
      rows[i].hidden = series.some(better);
    });
  };

  const plots = new Map();
  const draw = (figure) => {
    const place = figure.querySelector(".plot"), chart = data.charts[figure.dataset.chart];
    const x = form.x.value, weight = Number(form.smooth.value);
    const series = chart.series.filter((one) => shown(one.run));
    plots.get(figure)?.destroy();
    plots.delete(figure);
    place.replaceChildren();
    if (!series.length) return;
    const log = form.log.checked && !isNegative(series);
    const tables = series.map((one) => {
      const values = one.split === "train" && chart.key !== "lr" ? smoothed(one.values, weight) : one.values;
      return table(places(one, x), log ? values.map((value) => value || null) : values);  // zero has no logarithm
    });
    const plot = new uPlot(options(series, x, log, room(place)), uPlot.join(tables), place);
    plots.set(figure, plot);
    if (!single) listRunsOnce(plot, series);
  };
  const figures = [...document.querySelectorAll("figure[data-chart]")];
  const all = () => figures.forEach(draw);

  form.addEventListener("input", all);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.querySelectorAll("[data-run]").forEach((box) => box.addEventListener("change", all));
  for (const [event, isPaper] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      paper.toggle("paper", isPaper);
      all();
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  new ResizeObserver(() => {
    for (const [figure, plot] of plots) {
      const width = figure.querySelector(".plot").clientWidth;
      if (width && width !== plot.width && !paper.contains("paper")) plot.setSize({ width, height: 260 });
    }
  }).observe(document.body);
  all();
})();
