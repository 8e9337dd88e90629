"use strict";
// Colours the tokens by the layer that is chosen, and shows the weights of the token under the pointer.
(() => {
  const section = document.currentScript.closest("section");
  const { names, slots, programs } = JSON.parse(section.querySelector("script[type='application/json']").textContent);
  const select = section.querySelector("select");

  function weights(layers) {
    const total = new Map();
    for (const layer of layers)
      for (let i = 0; i < layer.length; i += 2) total.set(layer[i], (total.get(layer[i]) || 0) + layer[i + 1] / layers.length);
    return [...total].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  }

  function paint() {
    section.querySelectorAll("figure.program").forEach((figure, index) => {
      figure.querySelectorAll("pre span[title]").forEach((token, place) => {
        const layers = programs[index][place];
        const found = weights(select.value === "" ? layers : [layers[Number(select.value)]]);
        token.className = "x" + slots[found[0][0]];
        token.title = found.map(([expert, share]) => `${names[expert]} ${share.toFixed(0)} %`).join(", ");
      });
      figure.querySelector("output").textContent = "\u00a0";
    });
  }

  function show(event) {
    const token = event.target.closest("pre span[title]");
    if (!token) return;
    section.querySelectorAll(".chosen").forEach((other) => other.classList.remove("chosen"));
    token.classList.add("chosen");
    token.closest("figure").querySelector("output").textContent = `${JSON.stringify(token.textContent)}: ${token.title}`;
  }

  section.querySelector(".layer").hidden = false;
  select.addEventListener("change", paint);
  section.addEventListener("click", show);
  section.addEventListener("pointerover", show);
})();
