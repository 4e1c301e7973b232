"""How pictures look. Colours are Okabe and Ito's: told apart by everybody, and never alone."""

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vP"
HATCHES = ("", "///", "|||", "\\\\\\", "xxx", "---", "+++", "//")  # of lines: dots make large files
TERM_LOOKS = {  # colour and hatch of what a step's time goes into, wherever it is drawn
    "compute": ("#0072B2", ""), "reduce": ("#56B4E9", "///"), "encode": ("#009E73", "|||"),
    "copy": ("#8C564B", "||"), "links": ("#E69F00", "\\\\\\"), "decode": ("#CC79A7", "xxx"),
    "broadcast": ("#D55E00", "---"), "update": ("#F0E442", "+++"), "wait": ("#999999", "//")}
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "isthmus", "font.size": 10,
         "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False,
         "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left"}
