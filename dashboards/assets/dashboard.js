// Fetches the changing part of a page anew while the page is looked at. Everything else works without scripts.
"use strict";
(() => {
  const live = document.querySelector("[data-live]");
  if (!live) return;
  const status = document.getElementById("live-status");
  const pause = document.getElementById("live-pause");
  let tag = "";
  let seconds = Number(live.dataset.every);
  let failures = 0;
  let timer = 0;

  const place = (element) => (element && live.contains(element) ? element.id || element.getAttribute("href") : null);

  function replace(text) {
    const focused = place(document.activeElement);
    const open = new Set([...live.querySelectorAll("details[open]")].map((each) => each.id));
    const scrolled = new Map([...live.querySelectorAll(".scroll")].map((each) => [each.id, each.scrollLeft]));
    live.innerHTML = text;
    for (const each of live.querySelectorAll("details")) each.open = open.has(each.id);
    for (const each of live.querySelectorAll(".scroll")) each.scrollLeft = scrolled.get(each.id) || 0;
    if (!focused) return;
    const again = [...live.querySelectorAll("a[href], [id]")].find((each) => place(each) === focused);
    if (again) again.focus({ preventScroll: true });
  }

  async function look() {
    if (!document.hidden && !pause.checked) {
      try {
        const answer = await fetch(live.dataset.live, { headers: { "If-None-Match": tag }, cache: "no-store" });
        if (answer.status === 200) {
          replace(await answer.text());
          tag = answer.headers.get("ETag") || "";
        } else if (answer.status !== 304) {
          throw new Error(String(answer.status));
        }
        seconds = Number(answer.headers.get("X-Next-Seconds")) || seconds;
        failures = 0;
        status.textContent = "updates by itself";
        status.className = "";
      } catch {
        failures += 1;
        status.textContent = "not updated: the server does not answer";
        status.className = "problem";
      }
    }
    timer = setTimeout(look, 1000 * Math.min(60, seconds * 2 ** Math.min(failures, 5)));
  }

  pause.addEventListener("change", () => {
    status.textContent = pause.checked ? "updates are paused" : "updates by itself";
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    clearTimeout(timer);
    look();
  });
  document.querySelector(".live-bar").hidden = false;
  timer = setTimeout(look, 1000 * seconds);
})();
