"use strict";
// Tables sort by the column whose head is chosen.
document.querySelectorAll("#classes thead button").forEach(function (button, column) {
  button.addEventListener("click", function () {
    var head = button.parentElement, body = document.querySelector("#classes tbody");
    // numbers are looked at from the top, names in the order of their values
    var down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : column > 0;
    document.querySelectorAll("#classes thead th").forEach(function (th) { th.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    Array.from(body.rows).sort(function (a, b) {
      var difference = a.cells[column].dataset.value - b.cells[column].dataset.value;
      return down ? -difference : difference;
    }).forEach(function (row) { body.appendChild(row); });
  });
});

// A mask is laid on the photograph of its card, which is in the page once.
document.querySelectorAll("#cards .over").forEach(function (button) {
  var photo = button.closest(".row").querySelector(".open:not(.over) img[alt^='photograph of ']");
  if (!photo) { return; }
  var under = document.createElement("img");
  under.src = photo.src;
  under.alt = "";
  button.insertBefore(under, button.firstChild);
});

// Cards by class and by order.
(function () {
  var list = document.getElementById("cards"), bar = document.querySelector(".toolbar");
  if (!list || !bar) { return; }
  var filter = document.getElementById("filter"), order = document.getElementById("order");
  var cards = Array.from(list.children);
  function number(card, name) { return card.dataset[name] ? Number(card.dataset[name]) : NaN; }
  function arrange() {
    var key = order.value.replace("-", ""), down = order.value[0] === "-", wanted = filter ? filter.value : "";
    cards.slice().sort(function (a, b) {
      var one = number(a, key), other = number(b, key);
      if (isNaN(one) || isNaN(other)) { return isNaN(one) - isNaN(other); }
      return down ? other - one : one - other;
    }).forEach(function (card) { list.appendChild(card); });
    cards.forEach(function (card) {
      card.hidden = wanted !== "" && card.dataset.classes.split(" ").indexOf(wanted) < 0;
    });
    var shown = document.getElementById("shown");
    if (shown) { shown.textContent = list.querySelectorAll(".card:not([hidden])").length + " of " + cards.length; }
  }
  bar.hidden = cards.length < 2;
  order.addEventListener("change", arrange);
  if (filter) { filter.addEventListener("change", arrange); }
  if (document.getElementById("shown")) { document.getElementById("shown").textContent = cards.length + " of " + cards.length; }
}());

// A picture opens large: the photograph left of the line, the mask or another picture right of it.
(function () {
  var viewer = document.getElementById("viewer");
  if (!viewer || !viewer.showModal) { return; }
  var stage = viewer.querySelector(".stage"), range = stage.querySelector("input");
  var photo = stage.querySelector(".photo"), layer = stage.querySelector(".layer");
  var layers = viewer.querySelector(".layers"), card = null;
  function cards() { return Array.from(document.querySelectorAll("#cards .card:not([hidden])")); }
  function move() { stage.style.setProperty("--at", range.value + "%"); }
  function fit(ratio) { if (ratio > 0) { stage.style.setProperty("--ratio", ratio); } }
  function pictures(of) {
    if (of.dataset.mask) {  // files, where they lie
      var found = [{ name: "mask", src: of.dataset.mask, over: true }];
      if (of.dataset.photo) { found.unshift({ name: "photograph", src: of.dataset.photo }); }
      return found;
    }
    return Array.from(of.querySelectorAll(".open")).map(function (button) {
      var name = button.parentElement.querySelector("figcaption").textContent;
      return { name: name, src: button.querySelector("img:last-child").src, over: button.classList.contains("over") };
    });
  }
  function lay(picture, button) {
    layer.src = picture.src;
    layer.alt = picture.name + " of " + viewer.querySelector("h3").textContent;
    layer.className = "layer" + (picture.over ? " flat" : "") + (card.dataset.mask ? " solid" : "");
    range.setAttribute("aria-label", "Where the photograph ends and the " + picture.name + " begins, in per cent from the left");
    layers.querySelectorAll("button").forEach(function (each) { each.setAttribute("aria-pressed", each === button); });
  }
  function show(next, name) {
    card = next;
    var all = pictures(card), first = all[0].name === "photograph" ? all.shift() : null;
    viewer.querySelector("h3").textContent = card.querySelector("h3").textContent;
    stage.classList.toggle("alone", !first);
    photo.hidden = !first;
    if (first) { photo.src = first.src; photo.alt = "photograph of " + viewer.querySelector("h3").textContent; }
    var row = card.matches(".row") ? card : card.querySelector(".row");
    var thumb = row.querySelector("img");
    fit(row.dataset.ratio || thumb.naturalWidth / thumb.naturalHeight);
    layers.textContent = "";
    var chosen = null;
    all.forEach(function (picture) {
      var button = document.createElement("button");
      button.type = "button";
      button.textContent = picture.name;
      button.addEventListener("click", function () { lay(picture, button); });
      layers.appendChild(button);
      if (!chosen || picture.name === name || (picture.over && name === "photograph")) { chosen = [picture, button]; }
    });
    layers.hidden = all.length < 2;
    lay(chosen[0], chosen[1]);
    var at = cards().indexOf(card);
    viewer.querySelector(".previous").disabled = at <= 0;
    viewer.querySelector(".next").disabled = at >= cards().length - 1;
  }
  function step(by) {
    var pressed = layers.querySelector("[aria-pressed=true]"), next = cards()[cards().indexOf(card) + by];
    if (next) { show(next, pressed ? pressed.textContent : "mask"); }
  }
  photo.addEventListener("error", function () { photo.hidden = true; stage.classList.add("alone"); });
  layer.addEventListener("error", function () {  // the run has moved: the small picture is what there is
    var thumb = card.querySelector(".open img:last-child");
    if (layer.src !== thumb.src) { layer.src = thumb.src; layer.className = "layer"; }
  });
  range.addEventListener("input", move);
  document.querySelectorAll("#cards .open").forEach(function (button) {
    button.addEventListener("click", function () {
      var caption = button.parentElement.querySelector("figcaption");
      show(button.closest(".card"), caption.querySelector("h3") ? "mask" : caption.textContent);
      range.value = 50;
      move();
      viewer.showModal();
      range.focus();
    });
  });
  viewer.querySelector(".close").addEventListener("click", function () { viewer.close(); });
  viewer.querySelector(".previous").addEventListener("click", function () { step(-1); });
  viewer.querySelector(".next").addEventListener("click", function () { step(1); });
  viewer.addEventListener("click", function (event) { if (event.target === viewer) { viewer.close(); } });
  viewer.addEventListener("keydown", function (event) {
    if (event.key === "PageUp" || event.key === "PageDown") {
      event.preventDefault();
      step(event.key === "PageUp" ? -1 : 1);
    }
  });
}());
