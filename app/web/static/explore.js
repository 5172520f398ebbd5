// Draws the explorer's panels with uPlot from what the page brought along: a cursor through all of them, zooming by dragging (which is a
// new URL), and marks of events that lead to their entries in the list. Without it the page has drawings of its own.
(() => {
  "use strict";

  // What was left empty need not stand in the URL.
  document.querySelector(".explore-form")?.addEventListener("formdata", ({ formData }) => {
    for (const name of new Set(formData.keys())) {
      const values = formData.getAll(name).filter(Boolean);
      formData.delete(name);
      for (const value of values) formData.append(name, value);
    }
  });

  const figures = [...document.querySelectorAll("figure[data-plot]")];
  if (!figures.length || !window.uPlot) return;

  const happened = document.querySelector(".happened");
  const marks = happened ? JSON.parse(happened.dataset.marks) : [];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const LOOKS = { warn: "--degraded", error: "--offline", fatal: "--offline" };

  // As app/web/formats.py writes values.
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
  const formatOf = ({ unit, suffix }) => (value) => {
    if (unit === "ratio") return `${significant(value * 100)} %`;
    if (unit === "bytes") return bytes(value);
    if (unit === "bytes/s") return `${bytes(value)}/s`;
    return suffix ? `${significant(value)} ${suffix}` : significant(value);
  };

  const two = (number) => String(number).padStart(2, "0");
  const clock = (second, long) => {
    const time = new Date(second * 1000);
    const hour = `${two(time.getHours())}:${two(time.getMinutes())}`;
    return long ? `${time.toLocaleDateString(undefined, { day: "numeric", month: "short" })} ${hour}` : hour;
  };

  const zoom = (start, end) => {
    const url = new URL(location.href);
    const text = (second) => `${new Date(Math.round(second) * 1000).toISOString().slice(0, 19)}Z`;
    url.searchParams.delete("range");
    url.searchParams.set("from", text(start));
    url.searchParams.set("to", text(end));
    url.hash = "";
    location.assign(url);
  };

  const highlight = (number) => {
    for (const entry of document.querySelectorAll(".event.is-marked")) entry.classList.remove("is-marked");
    for (const button of document.querySelectorAll(".mark-button")) button.setAttribute("aria-pressed", String(button.dataset.number === String(number)));
    const entry = document.getElementById(`event-${number}`);
    if (!entry) return;
    history.replaceState(null, "", `#event-${number}`);
    entry.classList.add("is-marked");
    entry.scrollIntoView({ block: "nearest" });
    entry.focus({ preventScroll: true });
  };

  class Panel {
    constructor(figure) {
      this.plot = figure.querySelector(".explored-plot");
      this.told = JSON.parse(figure.dataset.plot);
      this.format = formatOf(this.told);
      this.cells = [...figure.parentElement.querySelectorAll(".line-figures td.under")];
      this.heading = figure.parentElement.querySelector(".line-figures th.under");
      figure.querySelector(".drawn").hidden = true;
      this.plot.hidden = false;
      this.draw();
    }

    draw() {
      this.view?.destroy();
      const { start, end, step, lines } = this.told;
      const seconds = [];
      for (let second = start; second <= end; second += step) seconds.push(second);
      const series = [{}];
      const data = [seconds];
      lines.forEach((line, at) => {
        const stroke = colour(`--series-${at + 1}`);
        if (line.before) {
          data.push(line.before);
          series.push({ stroke, width: 1.2, dash: [5, 4], points: { show: false } });
        }
        data.push(line.values);
        series.push({ stroke, width: 1.5, points: { show: lines.length === 1 && line.values.filter((v) => v !== null).length < 3 } });
      });
      const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: `11px ${getComputedStyle(document.body).fontFamily}` };
      const long = end - start > 86400;
      const binary = this.told.unit.startsWith("bytes");
      this.view = new uPlot({
        width: this.plot.clientWidth,
        height: this.plot.clientHeight,
        legend: { show: false },
        padding: [22, 8, 0, 0],
        cursor: { sync: { key: "explore" }, drag: { x: true, y: false, setScale: false }, y: false, points: { size: 6 } },
        scales: { x: { time: true, min: start, max: end }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.06 : high < 0 ? 0 : 1] } },
        axes: [
          { ...axis, size: 26, space: long ? 110 : 64, values: (_, splits) => splits.map((second) => clock(second, long)) },
          { ...axis, size: 84, space: 34, incrs: binary ? Array.from({ length: 52 }, (_, power) => 2 ** power) : undefined, values: (_, splits) => splits.map(this.format) },
        ],
        series,
        hooks: {
          draw: [(view) => this.drawMarks(view)],
          setCursor: [(view) => this.write(view.cursor.idx ?? null)],
          setSelect: [(view) => {
            const { left, width } = view.select;
            if (width > 4) zoom(view.posToVal(left, "x"), view.posToVal(left + width, "x"));
          }],
          ready: [(view) => this.placeMarks(view)],
          setSize: [(view) => this.placeMarks(view)],
        },
      }, data, this.plot);
    }

    drawMarks(view) {
      const { ctx, bbox } = view;
      ctx.save();
      ctx.lineWidth = devicePixelRatio;
      ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
      for (const mark of marks) {
        const x = Math.round(view.valToPos(mark.time, "x", true));
        if (x < bbox.left || x > bbox.left + bbox.width) continue;
        ctx.strokeStyle = colour(LOOKS[mark.severity] ?? "--quiet");
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
      }
      ctx.restore();
    }

    placeMarks(view) {
      for (const old of this.plot.querySelectorAll(".mark-button")) old.remove();
      const [left, right] = [view.over.offsetLeft, view.over.offsetLeft + view.over.offsetWidth];
      for (const mark of marks) {
        const x = Math.min(right, Math.max(left, left + view.valToPos(mark.time, "x")));
        const button = document.createElement("button");
        button.type = "button";
        button.className = `mark-button is-${mark.severity}`;
        button.dataset.number = mark.number;
        button.textContent = mark.count > 1 ? String(mark.count) : "▼";
        button.title = `${clock(mark.time)} ${mark.title}`;
        button.setAttribute("aria-label", `Event at ${clock(mark.time)}: ${mark.title}`);
        button.setAttribute("aria-pressed", "false");
        button.style.left = `${x}px`;
        button.addEventListener("click", () => highlight(mark.number));
        this.plot.append(button);
      }
    }

    write(index) {
      const none = index === null;
      if (this.heading) this.heading.hidden = none;
      this.cells.forEach((cell, at) => {
        cell.hidden = none;
        const value = none ? null : this.told.lines[at].values[index];
        cell.textContent = value === null || value === undefined ? "–" : this.format(value);
      });
    }
  }

  const panels = figures.map((figure) => new Panel(figure));
  new ResizeObserver(() => panels.forEach((panel) => {
    const { clientWidth: width, clientHeight: height } = panel.plot;
    if (panel.view.width !== width) panel.view.setSize({ width, height });
  })).observe(document.querySelector(".panels"));
  const redraw = () => panels.forEach((panel) => panel.draw());
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  document.addEventListener("irca:theme", redraw);
})();
