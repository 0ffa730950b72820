// Folds our nodes' advanced widgets on the classic canvas, which knows how to hide them but does not mark them by itself.
// With Nodes 2.0 the frontend folds them, and nothing is done here.
import { app } from "../../scripts/app.js";

const advanced = (definition) =>
  Object.values(definition?.input ?? {})
    .flatMap((inputs) => Object.entries(inputs ?? {}))
    .filter(([, spec]) => spec?.[1]?.advanced)
    .map(([name]) => name);

function resize(node) {
  node.setSize([node.size[0], node.computeSize()[1]]);
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "LAFR.FoldedWidgets",
  nodeCreated(node) {
    const definition = node.constructor.nodeData;
    if (!definition?.name?.startsWith("LAFR_") || globalThis.LiteGraph?.vueNodesMode) return;
    // On this canvas the host's slider only says that it wants Nodes 2.0; the node shows the sheet instead.
    for (const widget of node.widgets ?? []) if (widget.name === "compare_view") widget.hidden = true;
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
    }, { serialize: false });
    button.serialize = false;
    resize(node);
  },
});
