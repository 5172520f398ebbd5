// Draws an instance's charts with uPlot from the platform's Prometheus API, and appends to them as samples arrive.
(() => {
  "use strict";

  const section = document.getElementById("charts");
  if (!section || !window.uPlot) return;

  const SECONDS = Number(section.dataset.seconds);
  const STEP = Number(section.dataset.step);
  const LEAST_PAUSE = Math.max(5000, STEP * 500); // ms between two looks for new samples
  const LOOK_ANYWAY = 30000; // ms after which it looks without having been told of samples
  const AGAIN = 3; // steps at the end that are asked again, for a late sample may have changed them
  const MOST_LINES = 8;

  const significant = (value) => {
    const size = Math.abs(value);
    if (size >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString("en").replaceAll(",", "\u202f");
    return String(Number(value.toFixed(size >= 10 ? 1 : 2)));
  };
  const bytes = (value) => {
    const names = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let size = Math.abs(value);
    let at = 0;
    while (size >= 1024 && at < names.length - 1) {
      size /= 1024;
      at += 1;
    }
    return `${value < 0 ? "-" : ""}${significant(size)} ${names[at]}`;
  };
  const FORMATS = {
    ratio: (value) => `${significant(value * 100)} %`,
    bytes,
    "bytes/s": (value) => `${bytes(value)}/s`,
    number: significant,
  };
  // Round axis steps: powers of two for bytes, so that the axis reads 1 GiB, 2 GiB and not 0.93 GiB.
  const BINARY_STEPS = Array.from({ length: 52 }, (_, power) => 2 ** power);
  const BYTE_UNITS = ["bytes", "bytes/s"];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  class Problem extends Error {}

  const ask = async (promql, start, end) => {
    const query = new URLSearchParams({ query: promql, start, end, step: STEP });
    let response;
    try {
      response = await fetch(`/prometheus/api/v1/query_range?${query}`, { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(30000) });
    } catch {
      throw new Problem("The platform does not answer.");
    }
    const body = await response.json().catch(() => ({}));
    if (!response.ok || body.status !== "success") throw new Problem(body.error || body.detail || `The query failed (${response.status}).`);
    return body.data.result;
  };

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.plot = figure.querySelector(".plot");
      this.legend = figure.querySelector(".legend");
      this.queries = JSON.parse(figure.dataset.queries);
      this.format = FORMATS[figure.dataset.unit];
      this.stacked = figure.dataset.stacked === "true";
      this.maximum = figure.dataset.maximum ? Number(figure.dataset.maximum) : null;
      this.first = JSON.parse(figure.dataset.order);
      this.lines = new Map(); // label -> Map(second -> value)
      this.view = null;
      this.busy = false;
      this.note("Loading", true);
    }

    note(text, loading = false, retry = false) {
      this.destroy();
      this.plot.classList.toggle("is-loading", loading);
      const note = document.createElement("div");
      note.className = "note";
      note.append(text);
      if (retry) {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = "Try again";
        button.addEventListener("click", () => {
          this.note("Loading", true);
          this.load();
        });
        note.append(button);
      }
      this.plot.replaceChildren(note);
      this.plot.toggleAttribute("aria-hidden", !retry);
      if (!retry) this.plot.setAttribute("aria-hidden", "true");
    }

    destroy() {
      this.view?.destroy();
      this.view = null;
    }

    // Ask for the whole range, or, where there is something already, for its end only.
    async load() {
      if (this.busy) return;
      this.busy = true;
      const end = Math.floor(Date.now() / 1000 / STEP) * STEP;
      const begin = end - SECONDS;
      const start = this.loadedTo ? Math.max(begin, this.loadedTo - AGAIN * STEP) : begin;
      try {
        const results = await Promise.all(this.queries.map((query) => ask(query.promql, start, end)));
        this.take(results, start, begin);
        this.loadedTo = end;
        this.draw(begin, end);
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        if (!this.view) this.note(error.message, false, true);
      } finally {
        this.busy = false;
      }
    }

    take(results, start, begin) {
      for (const points of this.lines.values()) {
        for (const second of points.keys()) if (second < begin || second >= start) points.delete(second);
      }
      results.forEach((result, at) => {
        const { by, label } = this.queries[at];
        for (const series of result) {
          const name = by.map((key) => series.metric[key]).filter(Boolean).join(" ") || label;
          if (!this.lines.has(name)) this.lines.set(name, new Map());
          const points = this.lines.get(name);
          for (const [second, text] of series.values) {
            const value = Number(text);
            if (Number.isFinite(value)) points.set(second, value);
          }
        }
      });
      for (const [name, points] of this.lines) if (!points.size) this.lines.delete(name);
    }

    // The lines to draw: the chart's order, then greatest last value first; the rest beyond the eighth is only counted.
    chosen() {
      const last = (points) => points.get(Math.max(...points.keys()));
      const all = [...this.lines].map(([name, points]) => ({ name, points, last: last(points) }));
      const place = (line) => (this.first.includes(line.name) ? this.first.indexOf(line.name) : this.first.length);
      if (this.queries.length === 1) all.sort((a, b) => place(a) - place(b) || b.last - a.last || a.name.localeCompare(b.name));
      const order = (this.order || []).filter((name) => this.lines.has(name));
      const fixed = [...order, ...all.map((line) => line.name).filter((name) => !order.includes(name))];
      this.order = fixed.slice(0, MOST_LINES); // a line keeps its colour while the page is open
      return { shown: this.order.map((name) => all.find((line) => line.name === name)), more: all.length - this.order.length };
    }

    draw(begin, end) {
      if (!this.lines.size) {
        this.note("No data in this range");
        return;
      }
      const { shown, more } = this.chosen();
      const seconds = [];
      for (let second = begin; second <= end; second += STEP) seconds.push(second);
      this.values = shown.map((line) => seconds.map((second) => line.points.get(second) ?? null));
      const data = [seconds, ...(this.stacked ? stack(this.values) : this.values)];
      const names = shown.map((line) => line.name).join("\n");
      if (this.view && this.names === names) {
        this.view.setData(data, false);
        this.view.setScale("x", { min: begin, max: end });
      } else {
        this.names = names;
        this.destroy();
        this.plot.classList.remove("is-loading");
        this.plot.replaceChildren();
        this.view = new uPlot(this.options(shown, begin, end), data, this.plot);
      }
      this.range = [begin, end];
      this.shown = shown;
      this.more = more;
      this.write(null);
    }

    options(shown, begin, end) {
      const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: `11px ${getComputedStyle(document.body).fontFamily}` };
      const binary = BYTE_UNITS.includes(this.figure.dataset.unit);
      return {
        width: this.plot.clientWidth,
        height: this.plot.clientHeight,
        legend: { show: false },
        padding: [8, 8, 0, 0],
        cursor: { sync: { key: "instance" }, drag: { x: false, y: false }, y: false, points: { size: 6 } },
        scales: {
          x: { time: true, min: begin, max: end },
          y: { range: (_, low, high) => [Math.min(0, low ?? 0), this.maximum ?? (high > 0 ? high * 1.08 : 1)] },
        },
        axes: [
          { ...axis, size: 26, space: 64, values: (_, splits) => splits.map((second) => clock(second)) },
          { ...axis, size: 66, space: 34, incrs: binary ? BINARY_STEPS : undefined, values: (_, splits) => splits.map((value) => this.format(value)) },
        ],
        series: [{}, ...shown.map((_, at) => this.lineOptions(at))],
        bands: this.stacked ? shown.slice(1).map((_, at) => ({ series: [at + 2, at + 1] })) : [],
        hooks: { setCursor: [(view) => this.write(view.cursor.idx ?? null)] },
      };
    }

    lineOptions(at) {
      const stroke = colour(`--series-${at + 1}`);
      const faint = `color-mix(in srgb, ${stroke} ${this.stacked ? 28 : 8}%, transparent)`;
      const canvasFill = CSS.supports("color", faint) ? faint : undefined;
      return { stroke, width: 1.5, points: { show: false }, fill: this.stacked || this.queries.length === 1 ? canvasFill : undefined };
    }

    // The legend: values under the cursor, else the latest.
    write(index) {
      if (!this.shown) return;
      const items = this.shown.map((line, at) => {
        const value = index === null ? line.last : this.values[at][index];
        return [`series-${at + 1}`, line.name, value === null || value === undefined ? "-" : this.format(value)];
      });
      const nodes = [...this.legend.children];
      if (nodes.length === items.length + (this.more ? 1 : 0) && this.legend.dataset.names === this.names) {
        items.forEach(([, , text], at) => { nodes[at].lastElementChild.textContent = text; });
        return;
      }
      this.legend.dataset.names = this.names;
      this.legend.replaceChildren(...items.map(([className, name, text]) => {
        const item = document.createElement("li");
        item.className = className;
        const swatch = document.createElement("span");
        swatch.className = "swatch";
        const label = document.createElement("span");
        label.className = "name";
        label.textContent = name;
        const value = document.createElement("b");
        value.textContent = text;
        item.append(swatch, label, " ", value);
        return item;
      }));
      if (this.more) {
        const item = document.createElement("li");
        item.className = "quiet";
        item.textContent = `and ${this.more} more`;
        this.legend.append(item);
      }
    }

    resize() {
      this.view?.setSize({ width: this.plot.clientWidth, height: this.plot.clientHeight });
    }

    recolour() {
      if (!this.view) return;
      this.names = null;
      this.draw(...this.range);
    }
  }

  const stack = (values) => {
    const sums = values[0].map(() => 0);
    return values.map((line) => line.map((value, at) => (value === null ? null : (sums[at] += value))));
  };

  const clock = (second) => {
    const time = new Date(second * 1000);
    const two = (number) => String(number).padStart(2, "0");
    return `${two(time.getHours())}:${two(time.getMinutes())}`;
  };

  const charts = [...section.querySelectorAll(".chart")].map((figure) => new Chart(figure));
  let loaded = 0;
  let timer = 0;

  const load = () => {
    timer = 0;
    if (document.hidden) return;
    loaded = Date.now();
    charts.forEach((chart) => chart.load());
  };
  const loadSoon = () => {
    if (!timer) timer = setTimeout(load, Math.max(0, loaded + LEAST_PAUSE - Date.now()));
  };

  document.addEventListener("irca:live", (event) => {
    if (event.detail.topic === "samples" || event.detail.topic === "lagged") loadSoon();
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) loadSoon(); });
  setInterval(() => { if (Date.now() - loaded >= LOOK_ANYWAY) loadSoon(); }, 5000);
  new ResizeObserver(() => charts.forEach((chart) => chart.resize())).observe(section);
  const recolour = () => charts.forEach((chart) => chart.recolour());
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  document.addEventListener("irca:theme", recolour);
  load();
})();
