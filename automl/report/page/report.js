// Draws the charts from the JSON beside them, and again at paper's width before printing.
(function () {
  "use strict";
  var PAPER = 690; // CSS pixels of A4 within its margins
  var FLATTER = 0.8; // charts are less high on paper
  var drawn = [];
  var settings = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  document.querySelectorAll("script.chart-data").forEach(function (data) {
    var place = document.getElementById(data.dataset.for);
    var figure = JSON.parse(data.textContent);
    Plotly.newPlot(place, figure.data, figure.layout, settings);
    place.dataset.height = figure.layout.height;
    drawn.push(place);
  });
  function resize(width) {
    drawn.forEach(function (place) {
      var height = place.dataset.height * (width ? FLATTER : 1);
      Plotly.relayout(place, { width: width || null, autosize: !width, height: height });
    });
  }
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (each) { each.open = true; });
    resize(PAPER);
  });
  window.addEventListener("afterprint", function () { resize(0); });
})();
