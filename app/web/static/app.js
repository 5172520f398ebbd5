// What every page does in the browser: times in the viewer's zone, refreshes when something happened, copy buttons.
// A region with `data-refresh` is replaced by its newer self, one with `data-samples` also when samples arrive; `data-live` on a page's first region says what the page follows.
(() => {
  "use strict";

  document.documentElement.classList.add("js");

  const LEAST_PAUSE = 2000; // ms between two refreshes, however much happens
  const REFRESH_ANYWAY = 30000; // ms: "last seen" moves on without any event
  const HIDDEN_FOR = 30000; // ms after which a page nobody looks at lets go of its connection

  const exactFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });
  const shortFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

  const ago = (then) => {
    const seconds = Math.max(0, Math.floor((Date.now() - then) / 1000));
    for (const [size, name] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
      if (seconds >= size) return `${Math.floor(seconds / size)} ${name} ago`;
    }
    return seconds ? `${seconds} s ago` : "now";
  };

  const setText = (node, text) => {
    if (node.textContent !== text) node.textContent = text;
  };

  const showTimes = () => {
    for (const node of document.querySelectorAll("time[datetime]")) {
      const time = new Date(node.dateTime);
      node.title = exactFormat.format(time);
      if ("relative" in node.dataset) setText(node, ago(time));
      else setText(node, shortFormat.format(time));
    }
  };

  const prepareCopyButtons = () => {
    if (!navigator.clipboard) return; // only on https and localhost
    for (const button of document.querySelectorAll("button.copy[hidden]")) {
      button.hidden = false;
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      });
    }
  };

  const prepare = () => {
    showTimes();
    prepareCopyButtons();
  };

  // The indicator in the bar.
  const indicator = document.getElementById("live");
  const show = (on, text) => {
    if (!indicator) return;
    indicator.hidden = false;
    indicator.className = `live ${on ? "is-on" : "is-off"}`;
    setText(indicator, text);
  };

  // Refreshing: at once when the last one is long ago, else after the pause; never two at a time, never while nobody looks.
  let refreshed = Date.now();
  let timer = 0;
  let running = false;
  let wantedAgain = false;

  const regions = () => [...document.querySelectorAll("[data-refresh]")].map((node) => `#${node.id}`);

  const refresh = async () => {
    timer = 0;
    const [first, ...others] = regions();
    if (!first || !window.htmx) return;
    if (document.hidden || running) {
      wantedAgain = true;
      return;
    }
    running = true;
    wantedAgain = false;
    refreshed = Date.now();
    try {
      // `data-refresh` may name where the region is to be had, for a page that itself cannot be asked for again
      const from = document.querySelector("[data-refresh]").dataset.refresh || location.pathname + location.search;
      await window.htmx.ajax("GET", from, {
        source: first, target: first, select: first, swap: "outerMorph", selectOOB: others.map((id) => `${id}:outerMorph`).join(","),
      });
    } finally {
      running = false;
      if (wantedAgain) refreshSoon();
    }
  };

  const refreshSoon = () => {
    if (!timer) timer = setTimeout(refresh, Math.max(200, refreshed + LEAST_PAUSE - Date.now()));
  };

  // A region with `data-samples` shows what the samples say: when some arrived it alone is asked for, with the page's query.
  const SAMPLES_PAUSE = 5000; // ms between two looks at a region because of samples
  let sampled = Date.now();
  let samplesTimer = 0;

  const refreshSamples = async () => {
    samplesTimer = 0;
    const region = document.querySelector("[data-samples]");
    if (!region || !window.htmx) return;
    if (document.hidden) {
      wantedAgain = true;
      return;
    }
    if (running) {
      samplesSoon(500);
      return;
    }
    running = true;
    sampled = Date.now();
    const asked = location.search;
    try {
      await window.htmx.ajax("GET", region.dataset.samples + asked, { source: region, target: `#${region.id}`, select: `#${region.id}`, swap: "outerMorph" });
    } finally {
      running = false;
      if (location.search !== asked) samplesSoon(0); // a filter was changed meanwhile, and this answer is of the one before
      if (wantedAgain) refreshSoon();
    }
  };

  const samplesSoon = (pause) => {
    if (!samplesTimer) samplesTimer = setTimeout(refreshSamples, Math.max(0, pause));
  };

  // The live stream. Whoever else needs it (charts.js) listens for `irca:live` on the document.
  const TOPICS = ["agent", "instance", "samples", "event", "delivery", "lagged"];
  const followed = document.querySelector("[data-live]")?.dataset.live;
  let source = null;
  let letGo = 0;
  let lastId = ""; // of the last event that came: a new connection goes on after it

  const connect = () => {
    if (!followed || source) return;
    source = new EventSource(`/api/v1/live?${followed}${lastId && `&last_event_id=${encodeURIComponent(lastId)}`}`);
    source.addEventListener("open", () => show(true, "Live"));
    source.addEventListener("error", () => {
      show(false, "Reconnecting");
      if (source && source.readyState === EventSource.CLOSED) { // refused for good, such as at the end of the session
        source = null;
        setTimeout(connect, 10000);
        refreshSoon();
      }
    });
    for (const topic of TOPICS) {
      source.addEventListener(topic, (message) => {
        lastId = message.lastEventId;
        document.dispatchEvent(new CustomEvent("irca:live", { detail: { topic, data: JSON.parse(message.data) } }));
        if (topic === "samples") samplesSoon(sampled + SAMPLES_PAUSE - Date.now());
        else refreshSoon();
      });
    }
  };

  const disconnect = () => {
    source?.close();
    source = null;
  };

  document.addEventListener("visibilitychange", () => {
    clearTimeout(letGo);
    if (document.hidden) {
      letGo = setTimeout(disconnect, HIDDEN_FOR);
    } else {
      const missed = !source && !lastId;
      connect(); // what happened meanwhile is told now, or that it is no longer known
      if (missed || wantedAgain) refreshSoon();
    }
  });
  window.addEventListener("pagehide", disconnect);
  window.addEventListener("pageshow", (event) => { if (event.persisted) connect(); });

  document.addEventListener("htmx:after:swap", prepare);
  document.addEventListener("htmx:error", () => show(false, "Not up to date"));
  document.addEventListener("htmx:response:error", () => show(false, "Not up to date"));
  document.addEventListener("htmx:after:request", (event) => {
    if (event.detail.ctx?.response?.raw?.ok && source?.readyState === EventSource.OPEN) show(true, "Live");
  });

  // Filters that are empty stay out of the URL.
  document.addEventListener("htmx:config:request", (event) => {
    const body = event.detail.ctx?.request?.body;
    if (!(body instanceof FormData) || event.detail.ctx.request.method !== "GET") return;
    for (const [name, value] of [...body.entries()]) if (value === "") body.delete(name);
  });

  // The switch between light and dark works as a form; here it does so without leaving the page, which may not be asked for again.
  document.querySelector("form.themes")?.addEventListener("submit", async (event) => {
    const chosen = event.submitter?.value;
    if (chosen === undefined) return;
    event.preventDefault();
    const root = document.documentElement;
    if (chosen) root.dataset.theme = chosen;
    else delete root.dataset.theme;
    document.querySelector("meta[name=color-scheme]").content = chosen || "light dark";
    for (const button of event.currentTarget.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.value === chosen));
    document.dispatchEvent(new CustomEvent("irca:theme"));
    await fetch("/theme", { method: "POST", body: new URLSearchParams({ theme: chosen }), redirect: "manual" });
  });

  prepare();
  setInterval(showTimes, 5000);
  setInterval(() => { if (regions().length) refreshSoon(); }, REFRESH_ANYWAY);
  connect();
})();
