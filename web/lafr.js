// Folds our nodes' advanced widgets on the classic canvas, which knows how to hide them but does not mark them by itself
// (Nodes 2.0 folds them itself), and gives the compare node's pictures to the host's slider (Nodes 2.0 alone draws it).
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const advanced = (definition) =>
  Object.values(definition?.input ?? {})
    .flatMap((inputs) => Object.entries(inputs ?? {}))
    .filter(([, spec]) => spec?.[1]?.advanced)
    .map(([name]) => name);

function resize(node) {
  node.setSize([node.size[0], node.computeSize()[1]]);
  node.setDirtyCanvas(true, true);
}

// The setting may change while the node is open: what depends on it is asked for anew each time.
const modern = () => !!globalThis.LiteGraph?.vueNodesMode;
const live = (thing, name, get) => Object.defineProperty(thing, name, { get, set() {}, configurable: true, enumerable: true });

// The host fills the slider of its own compare node only.
function slide(node) {
  const widget = node.widgets?.find((widget) => widget.name === "compare_view");
  if (!widget) return;
  // What it shows is no input: sent along, it would make the node run again at every click.
  widget.options = { ...widget.options, serialize: false };
  live(widget, "hidden", () => !modern()); // else it only says that it wants Nodes 2.0, and the node shows the sheet instead
  live(node, "hideOutputImages", modern);
  const shown = node.onExecuted;
  node.onExecuted = function (output) {
    shown?.apply(this, arguments);
    const addresses = (images) =>
      (images ?? []).map((image) => api.apiURL(`/view?${new URLSearchParams(image)}${app.getRandParam()}`));
    widget.value = { beforeImages: addresses(output.a_images), afterImages: addresses(output.b_images) };
    widget.callback?.(widget.value);
  };
}

app.registerExtension({
  name: "LAFR.Compare",
  nodeCreated(node) {
    if (node.constructor.nodeData?.name === "LAFR_Compare") slide(node);
  },
});

app.registerExtension({
  name: "LAFR.FoldedWidgets",
  nodeCreated(node) {
    const definition = node.constructor.nodeData;
    if (!definition?.name?.startsWith("LAFR_")) return;
    const folded = (node.widgets ?? []).filter((widget) => advanced(definition).includes(widget.name));
    if (!folded.length) return;
    for (const widget of folded) {
      widget.advanced = true;
      // The canvas hides them but leaves their rows empty.
      widget.computeSize = (width) => (node.showAdvanced ? [width ?? 0, LiteGraph.NODE_WIDGET_HEIGHT] : [0, -4]);
    }
    const label = () => (node.showAdvanced ? "fewer options" : `${folded.length} more options`);
    // Not serialized: saved workflows hold the node's own widgets only.
    const button = node.addWidget("button", label(), null, () => {
      node.showAdvanced = !node.showAdvanced;
      button.name = button.label = label();
      resize(node);
    }, { serialize: false, canvasOnly: true });
    button.serialize = false;
    resize(node);
  },
});
